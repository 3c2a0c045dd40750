//! Guests with devices of real machines. Where the dumps cannot be had, the tests say that they
//! checked nothing; `cargo lab test` fails there.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails panics")]

use std::path::{Path, PathBuf};

use dumps::difference::Difference;
use dumps::dump::{Function, print};
use dumps::guest::assign;
use dumps::page::{Sight, page, read, sight};
use dumps::{lists, lspci};
use lab::Lab;

/// A file: its name, and its functions.
type File = (String, Vec<Function>);

/// The folder of the dumps, and the files in it.
fn dumps() -> (PathBuf, Vec<File>) {
    match Lab::lspci_dumps() {
        Ok(folder) => (folder.clone(), read(&folder).unwrap()),
        Err(error) => {
            eprintln!("NOT CHECKED: {error}");
            (PathBuf::new(), Vec::new())
        }
    }
}

/// Whether the header is that of a function that is no bridge.
fn is_endpoint(function: &Function) -> bool {
    lists::u8_at(&function.config, 0x0e) & 0x7f == 0
}

#[test]
fn no_capability_loops_overlaps_or_lies() {
    for (name, function) in dumps().1.iter().flat_map(with_name) {
        println!("{name} {}", function.address);
        if let Ok(assigned) = assign(function) {
            fuzz::shown::check(&assigned.function, &*assigned.device);
        }
    }
}

fn with_name((name, functions): &File) -> impl Iterator<Item = (&str, &Function)> {
    functions.iter().map(move |function| (name.as_str(), function))
}

#[test]
fn each_byte_is_the_device_s_or_differs_for_a_known_reason() {
    for (name, function) in dumps().1.iter().flat_map(with_name) {
        if let Sight::Shown(Difference { faults, .. }) = sight(function) {
            assert_eq!(faults, [], "{name} {}", function.address);
        }
    }
}

#[test]
fn refuses_bridges_and_nothing_else() {
    for (name, function) in dumps().1.iter().flat_map(with_name) {
        let what = format!("{name} {}", function.address);
        match sight(function) {
            Sight::Shown(_) => assert!(is_endpoint(function), "{what}"),
            Sight::Refused(error) => {
                assert!(!is_endpoint(function), "{what}: {error}");
                assert!(error.contains("it is a bridge"), "{what}: {error}");
            }
        }
    }
}

#[test]
fn lspci_complains_of_no_view_unless_it_complains_of_the_device() {
    let (folder, files) = dumps();
    for (name, functions) in files {
        let endpoints = functions.iter().filter(|function| is_endpoint(function));
        let views = endpoints.map(|it| print(it.address, &assign(it).unwrap().config()));
        let views: Vec<_> = views.collect();
        let read = lspci::read_text(&views.concat()).unwrap();
        let heads = read.lines().filter(|line| line.starts_with(|it: char| it.is_ascii_hexdigit()));
        assert_eq!(heads.count(), views.len(), "{name}:\n{read}");
        let own = lspci::read(&folder.join(&name)).unwrap();
        let known = lspci::complaints(&own);
        let new = lspci::complaints(&read).into_iter().filter(|line| !known.contains(line));
        assert_eq!(new.collect::<Vec<_>>(), [""; 0], "{name}");
    }
}

#[test]
fn docs_config_space_md_is_what_the_dumps_give() {
    let files = dumps().1;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config-space.md");
    let written = std::fs::read_to_string(docs).unwrap();
    let remedy = "update it: cargo run -p dumps > docs/config-space.md";
    assert!(files.is_empty() || page(&files) == written, "{remedy}");
}
