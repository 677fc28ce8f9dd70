//! Converses with a language model on the terminal, word by word.
//!
//! ```sh
//! cargo run --release --example chat -- engines/smollm2-135m
//! ```

use std::io::{BufRead, Write};

use watus_build::{ChatModel, ChatOptions, Message};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Templates come with models: they run in a child under limits.
    watus_build::enable_child_processes();
    let engine = std::env::args().nth(1).unwrap_or_else(|| "engines/smollm2-135m".to_owned());
    let mut model = ChatModel::open(&engine)?;
    let options = ChatOptions::new().temperature(0.7).max_tokens(256);
    let mut messages = vec![Message::system("You are a friendly robot. Answer in one sentence.")];
    for line in std::io::stdin().lock().lines() {
        messages.push(Message::user(line?));
        let mut answer = String::new();
        // What was computed of the conversation so far is kept: each turn reads what is new.
        for piece in model.chat_with(&messages, &options)? {
            let piece = piece?;
            print!("{}", piece.text);
            std::io::stdout().flush()?;
            answer.push_str(&piece.text);
        }
        println!();
        messages.push(Message::assistant(answer));
    }
    Ok(())
}
