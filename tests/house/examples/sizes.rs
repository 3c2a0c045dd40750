//! Prints lines of code and sizes of functions: `cargo run -p house --example sizes -- vmm/src`.

use std::error::Error;
use std::path::Path;

use house::sizes::{product_files, sizes};

fn main() -> Result<(), Box<dyn Error>> {
    let mut all = Vec::new();
    for folder in std::env::args().skip(1) {
        let (mut code, mut largest) = (0_usize, (0, String::new()));
        for path in product_files(Path::new(&folder))? {
            let found = sizes(&std::fs::read_to_string(&path)?)?;
            code = code.saturating_add(found.code);
            largest = largest.max((found.code, path.display().to_string()));
            all.extend(found.functions.into_iter().map(|(name, lines)| (lines, name)));
        }
        println!("{folder}: {code} lines of code; largest file: {} ({})", largest.1, largest.0);
    }
    all.sort();
    let at = |percent: usize| {
        let index = all.len().saturating_mul(percent).checked_div(100).unwrap_or_default();
        all.get(index).map_or(0, |(lines, _)| *lines)
    };
    println!("{} functions: median {}, 90th percentile {}", all.len(), at(50), at(90));
    for (lines, name) in all.iter().rev().take(10) {
        println!("  {lines} {name}");
    }
    Ok(())
}
