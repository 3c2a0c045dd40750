//! `cargo run -p dumps`: prints docs/config-space.md, or the table of other dumps.

use std::env;
use std::error::Error;
use std::path::Path;

use dumps::page;
use lab::Lab;

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<_> = env::args_os().skip(1).collect();
    let text = if files.is_empty() {
        page::page(&page::read(&Lab::lspci_dumps()?)?)
    } else {
        let files = files.iter().map(|file| page::read_file(Path::new(file)));
        page::table_of(&files.collect::<Result<Vec<_>, _>>()?)
    };
    print!("{text}");
    Ok(())
}
