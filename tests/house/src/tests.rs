//! Small crates, with a circle or without.

use super::*;

fn graph(sources: &[(&str, &str)]) -> Graph {
    let sources = sources.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned()));
    files(&sources.collect()).unwrap()
}

fn circles(sources: &[(&str, &str)]) -> Vec<String> {
    graph(sources).circles()
}

#[test]
fn reports_two_files_that_import_each_other() {
    let found = circles(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "use super::a::A; pub struct B(Box<A>);"),
    ]);
    assert_eq!(found, ["a.rs -> b.rs -> a.rs"]);
}

#[test]
fn reports_a_circle_of_paths_without_imports() {
    let found = circles(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "pub fn a() { crate::b::b() }"),
        ("b.rs", "use crate::c; pub fn b() { println!(\"{:?}\", (1, c::C)) }"),
        ("c.rs", "pub const C: u8 = 0; pub type T = fn(crate::a::A);"),
    ]);
    assert_eq!(found, ["a.rs -> b.rs -> c.rs -> a.rs"]);
}

#[test]
fn reports_a_parent_that_exports_a_child_which_imports_from_it() {
    let found = circles(&[
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod b; pub use b::B; pub struct A;"),
        ("a/b.rs", "use super::A; pub struct B(A);"),
    ]);
    assert_eq!(found, ["a/b.rs -> a/mod.rs -> a/b.rs"]);
}

#[test]
fn follows_exports_to_the_file_that_defines_the_item() {
    let sources = [
        ("lib.rs", "mod a; pub use a::*;"),
        ("a/mod.rs", "mod b; mod c; pub use b::B; pub use c::C as D;"),
        ("a/b.rs", "use super::D; use crate::D as E; pub struct B(D, E);"),
        ("a/c.rs", "pub struct C;"),
    ];
    let graph = graph(&sources);
    assert_eq!(graph.of("a/b.rs").collect::<Vec<_>>(), ["a/c.rs"]);
    assert_eq!(graph.circles(), [""; 0]);
}

#[test]
fn looks_at_no_test_and_at_no_other_crate() {
    let found = circles(&[
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "use std::fmt; use b::other; pub struct A; #[cfg(test)] mod tests { use crate::b::B; }",
        ),
        ("b.rs", "use crate::a::A; pub struct B(A); #[cfg(all(test, x))] mod missing;"),
    ]);
    assert_eq!(found, [""; 0]);
}

#[test]
fn a_function_may_have_the_name_of_a_module() {
    let sources = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod check; pub fn check() { check::check() }"),
        ("a/check.rs", "pub fn check() {}"),
        ("b.rs", "use crate::a; pub fn b() { a::check() }"),
    ];
    assert_eq!(graph(&sources).of("b.rs").collect::<Vec<_>>(), ["a/mod.rs"]);
}

#[test]
fn rooms_are_folders() {
    let sources = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod c; mod d;"),
        ("a/c.rs", "pub use crate::b::B;"),
        ("a/d.rs", "pub struct D;"),
        ("b.rs", "mod e;"),
        ("b/e.rs", "pub use crate::a::d::D;"),
    ];
    let sources = sources.map(|(path, text)| {
        let text = text.replace("b::B", "b::e::D2").replace("D;", "D; pub struct D2;");
        (path, text)
    });
    let sources = sources.each_ref().map(|(path, text)| (*path, text.as_str()));
    let files = graph(&sources);
    assert_eq!(files.circles(), [""; 0]);
    assert_eq!(rooms(&files).circles(), ["a -> b -> a"]);
}

#[test]
fn reports_a_file_that_is_missing() {
    let sources = Sources::from([(PathBuf::from("lib.rs"), "mod a;".to_owned())]);
    assert_eq!(files(&sources).unwrap_err(), "no file for a");
}
