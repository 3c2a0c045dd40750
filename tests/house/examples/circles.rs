//! Prints the circles of crates: `cargo run -p house --example circles -- vmm/src`.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    for folder in std::env::args().skip(1) {
        let files = house::files(&house::read(Path::new(&folder))?)?;
        println!("{folder}: {} files are on circles", files.knotted().len());
        files.circles().iter().for_each(|circle| println!("  {circle}"));
        house::rooms(&files).circles().iter().for_each(|circle| println!("  rooms: {circle}"));
    }
    Ok(())
}
