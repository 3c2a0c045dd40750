//! Runs every input of the corpus through its target.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

use std::fs;
use std::path::Path;

#[test]
fn every_input_of_the_corpus_passes() {
    for (name, target) in fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut inputs: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(inputs.len() >= 10, "{name} has a corpus");
        for input in &inputs {
            // If the target panics, this is the last line of the output.
            println!("{}", input.display());
            target(&fs::read(input).unwrap());
        }
    }
}
