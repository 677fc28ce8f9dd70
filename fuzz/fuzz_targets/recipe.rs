//! A text that is anything at all is a recipe or one error; what is a recipe has a plan, and the plan is JSON.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use watus_build::recipe::{Plan, parse};

fuzz_target!(|data: &[u8]| {
    let path = Path::new("folder/r.yaml");
    match parse(path, &String::from_utf8_lossy(data)) {
        Ok(recipe) => {
            let plan = Plan::new(path, &recipe);
            assert!(!plan.name.is_empty() && !plan.name.contains('/'), "{}", plan.name);
            serde_json::to_string(&plan).expect("a plan is JSON");
        }
        Err(error) => assert!(error.to_string().contains("r.yaml"), "{error}"),
    }
});
