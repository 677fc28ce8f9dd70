//! Says what pictures show, as many at once as the engine takes.
//!
//! ```sh
//! cargo run --release --example classify -- engines/gender face.png other.png
//! ```

use watus_build::{Classifier, Error};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let engine = arguments.next().unwrap_or_else(|| "engines/gender".to_owned());
    let pictures: Vec<String> = arguments.collect();
    let mut classifier = Classifier::open(&engine)?;
    let answers = classifier.classify_batch(&pictures)?;
    for (picture, answer) in pictures.iter().zip(&answers) {
        println!("{picture}: {}", answer.label);
        for class in &answer.ranked {
            println!("  {} {:.3}", class.label, class.score);
        }
        // A model whose classes are ages, say, and one whose labels may be there side by side.
        if let Some(value) = answer.value {
            println!("  value {value:.1}");
        }
        if let Some(present) = &answer.present {
            println!("  there are: {}", present.join(", "));
        }
    }
    Ok(())
}
