//! Finds files of a crate that import each other in a circle, and errors that are on no page
//! ([`errors`]).
//!
//! A file depends on another one when its code names an item that is defined there: by `use`, or by
//! a path in an expression, a type or the arguments of a macro. The rules:
//!
//! - A path is followed through imports and re-exports to the file that defines the item. A module
//!   that only re-exports is a name on the way, and depends on what it re-exports.
//! - `mod x;` is no dependency, and neither is an import of a module: the paths that begin with it
//!   are.
//! - `use x::*` depends on the file of `x`, whatever it takes from there.
//! - Code under `#[cfg(test)]` is not looked at.
//!
//! The check does not know types, so that a call of a method, or a use of a field, is no dependency.
//! Mostly the same file names the type, too.

pub mod errors;
mod graph;
mod modules;
mod names;
mod reader;
pub mod sizes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

pub use graph::Graph;

/// The text of a crate's files, by their paths below `src`.
pub type Sources = BTreeMap<PathBuf, String>;

/// Reads all Rust files below `folder`.
///
/// # Errors
///
/// A file or a folder cannot be read.
pub fn read(folder: &Path) -> io::Result<Sources> {
    let mut sources = Sources::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(folder).unwrap_or(&path).to_owned();
                sources.insert(name, fs::read_to_string(&path)?);
            }
        }
    }
    Ok(sources)
}

/// Which file depends on which, beginning at `lib.rs`.
///
/// # Errors
///
/// A file is missing, or is no Rust.
pub fn files(sources: &Sources) -> Result<Graph, String> {
    Ok(names::edges(&modules::read(sources)?))
}

/// Which room depends on which: a room is a folder beside `lib.rs`, or a file there. `lib.rs` is
/// none.
#[must_use]
pub fn rooms(files: &Graph) -> Graph {
    files.contracted(|file| {
        let first = file.split('/').next()?.trim_end_matches(".rs");
        (first != "lib").then(|| first.to_owned())
    })
}

#[cfg(test)]
mod tests;
