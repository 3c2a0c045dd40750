//! Each error that a start can end in is on the page of errors, with the line of `vmm check` that
//! predicts it, or the reason why none does.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use house::errors::{Errors, Prediction, Row, checks, errors, rows};

/// The crates whose errors a user of `vmm` can meet.
const CRATES: [&str; 4] = ["vfio-passthrough", "devices", "resources", "vmm"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn all_errors() -> Errors {
    let of_crate = |name: &&str| {
        let folder = format!("{name}/src");
        errors(&folder, &house::read(&workspace().join(&folder)).unwrap()).unwrap()
    };
    CRATES.iter().flat_map(of_crate).collect()
}

fn page() -> Vec<Row> {
    rows(&std::fs::read_to_string(workspace().join("docs/errors.md")).unwrap())
}

#[test]
fn the_page_has_each_error_once_and_no_other() {
    let errors = all_errors();
    let known: BTreeSet<_> = errors
        .iter()
        .flat_map(|(of, variants)| variants.iter().map(move |v| format!("{of}::{v}")))
        .collect();
    let rows: Vec<_> = page().iter().map(|row| format!("{}::{}", row.of, row.variant)).collect();
    let listed: BTreeSet<_> = rows.iter().cloned().collect();
    let missing: Vec<_> = known.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&known).collect();
    assert!(missing.is_empty(), "docs/errors.md lacks rows for: {missing:#?}");
    assert!(gone.is_empty(), "docs/errors.md has rows for what is gone: {gone:#?}");
    assert_eq!(rows.len(), listed.len(), "docs/errors.md has a row twice");
}

#[test]
fn each_error_is_predicted_by_a_line_that_exists_or_the_page_says_why_not() {
    let folder = workspace().join("vmm/src/prepare/check");
    let lines = checks(&house::read(&folder).unwrap()).unwrap();
    let is_wrong = |row: &Row| match &row.prediction {
        Prediction::Checks(names) => names.iter().any(|name| !lines.contains(name)),
        Prediction::No(reason) => reason.split(' ').count() < 4,
        Prediction::Invalid(_) => true,
    };
    let wrong: Vec<_> = page().into_iter().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "lines of check are {lines:?}; wrong rows: {wrong:#?}");
}

#[test]
fn the_page_states_how_many_errors_are_predicted() {
    let rows = page();
    let is_predicted = |row: &&Row| matches!(row.prediction, Prediction::Checks(_));
    let predicted = rows.iter().filter(is_predicted).count();
    let text = std::fs::read_to_string(workspace().join("docs/errors.md")).unwrap();
    let said = format!("{} errors: {predicted} are predicted", rows.len());
    assert!(text.contains(&said), "docs/errors.md does not say: {said}");
}
