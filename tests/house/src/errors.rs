//! The errors of the crates, the lines of `vmm check`, and the page that says which line predicts
//! which error.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{Attribute, Item};

use crate::Sources;

/// The variants of each error type, by `file: type`. A struct is its own variant.
pub type Errors = BTreeMap<String, BTreeSet<String>>;

/// The error types in `sources`, whose files are below `folder`.
///
/// # Errors
///
/// A file is no Rust.
pub fn errors(folder: &str, sources: &Sources) -> Result<Errors, String> {
    let mut found = Errors::new();
    for (path, text) in sources {
        let name = format!("{folder}/{}", path.display());
        let file = syn::parse_file(text).map_err(|error| format!("{name}: {error}"))?;
        found.extend(file.items.iter().filter_map(|item| error_type(&name, item)));
    }
    Ok(found)
}

fn error_type(file: &str, item: &Item) -> Option<(String, BTreeSet<String>)> {
    let (attributes, name, variants) = match item {
        Item::Enum(item) => {
            let variants = item.variants.iter().map(|variant| variant.ident.to_string());
            (&item.attrs, &item.ident, variants.collect())
        }
        Item::Struct(item) => (&item.attrs, &item.ident, BTreeSet::from([item.ident.to_string()])),
        _ => return None,
    };
    derives_error(attributes).then(|| (format!("{file}: {name}"), variants))
}

/// Whether a type derives `thiserror::Error`, which may be imported as `ThisError`.
fn derives_error(attributes: &[Attribute]) -> bool {
    let derives = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    derives.filter_map(|attribute| attribute.meta.require_list().ok()).any(|list| {
        let text = list.tokens.to_string();
        let mut paths = text.split(',').map(|path| path.rsplit("::").next().unwrap_or_default());
        paths.any(|name| matches!(name.trim(), "Error" | "ThisError"))
    })
}

/// The names of the lines of `vmm check`: what the code gives to `Line::ok`, `Line::warning`,
/// `Line::fail` and `failed`, as text or by the variable `check`.
///
/// # Errors
///
/// A file is no Rust.
pub fn checks(sources: &Sources) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    let files = sources.iter().filter(|(path, _)| !path.iter().any(|part| part == "tests"));
    for (path, text) in files {
        let tokens: TokenStream =
            text.parse().map_err(|error| format!("{}: {error}", path.display()))?;
        names_in(tokens, &mut names);
    }
    Ok(names)
}

fn names_in(tokens: TokenStream, names: &mut BTreeSet<String>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    for window in tokens.windows(3) {
        if let [TokenTree::Ident(name), TokenTree::Punct(sign), value] = window {
            let is_variable = name == "check" && sign.as_char() == '=';
            names.extend(text_of(value).filter(|_| is_variable));
        }
    }
    for pair in tokens.windows(2) {
        if let [TokenTree::Ident(call), TokenTree::Group(arguments)] = pair {
            let is_call =
                ["ok", "warning", "fail", "failed", "checked"].iter().any(|name| call == name)
                    && arguments.delimiter() == Delimiter::Parenthesis;
            let first = arguments.stream().into_iter().next();
            names.extend(first.as_ref().and_then(text_of).filter(|_| is_call));
        }
    }
    for token in tokens {
        if let TokenTree::Group(group) = token {
            names_in(group.stream(), names);
        }
    }
}

fn text_of(token: &TokenTree) -> Option<String> {
    let text = token.to_string();
    Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// A row of the page: an error, and what the page says of its prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The type, as `file: type`.
    pub of: String,
    /// The variant.
    pub variant: String,
    /// What predicts it.
    pub prediction: Prediction,
}

/// What predicts an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// Lines of `vmm check`.
    Checks(Vec<String>),
    /// Nothing, for this reason.
    No(String),
    /// The cell is neither.
    Invalid(String),
}

/// The rows of a page: each heading ``### `file`: `type` `` is followed by a table whose rows are
/// ``| `variant` | prediction | remedy |``.
#[must_use]
pub fn rows(page: &str) -> Vec<Row> {
    let (mut of, mut rows) = (String::new(), Vec::new());
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            of = heading.replace('`', "");
        }
        let mut cells = line.split(" | ").map(|cell| cell.trim_matches(['|', ' ']));
        let variant = cells.next().and_then(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
        if let (Some(variant), Some(cell), Some(_)) = (variant, cells.next(), cells.next()) {
            let variant = variant.to_owned();
            rows.push(Row { of: of.clone(), variant, prediction: prediction(cell) });
        }
    }
    rows
}

fn prediction(cell: &str) -> Prediction {
    let name = |part: &str| Some(part.strip_prefix('`')?.strip_suffix('`')?.to_owned());
    let names: Option<Vec<_>> = cell.split(", ").map(name).collect();
    match (names, cell.strip_prefix("no: ")) {
        (Some(names), _) => Prediction::Checks(names),
        (None, Some(reason)) => Prediction::No(reason.to_owned()),
        (None, None) => Prediction::Invalid(cell.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(text: &str) -> Sources {
        Sources::from([("a.rs".into(), text.to_owned())])
    }

    #[test]
    fn finds_types_that_derive_error() {
        let text = "#[derive(Debug, thiserror::Error)] pub enum A { One, Two { x: u8 } }\n\
                    #[derive(Debug, ThisError)] enum B { Three(u8) }\n\
                    #[derive(Error)] struct C;\n\
                    #[derive(Debug)] enum OnError { No }";
        let found = errors("src", &sources(text)).unwrap();
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let expected = [
            ("src/a.rs: A".to_owned(), set(&["One", "Two"])),
            ("src/a.rs: B".to_owned(), set(&["Three"])),
            ("src/a.rs: C".to_owned(), set(&["C"])),
        ];
        assert_eq!(found, Errors::from(expected));
    }

    #[test]
    fn finds_names_of_lines_also_in_macros() {
        let text = "fn f() { let check = \"a\"; vec![Line::ok(\"b\", x), failed(\"c\", y)];\n\
                    match z { _ => Line::fail(\"d\", format!(\"no\")), _ => Line::fail(check, w) }}";
        let found: Vec<_> = checks(&sources(text)).unwrap().into_iter().collect();
        assert_eq!(found, ["a", "b", "c", "d"]);
    }

    #[test]
    fn reads_the_rows_of_a_page() {
        let page = "### `src/a.rs`: `A`\n\n| error | predicted by | remedy |\n|---|---|---|\n\
                    | `One` | `kvm`, `vfio` | do it |\n| `Two` | no: because | wait |\n\
                    | `Three` | perhaps | |\n";
        let predictions: Vec<_> = rows(page).into_iter().map(|row| row.prediction).collect();
        let expected = [
            Prediction::Checks(vec!["kvm".to_owned(), "vfio".to_owned()]),
            Prediction::No("because".to_owned()),
            Prediction::Invalid("perhaps".to_owned()),
        ];
        assert_eq!(predictions, expected);
        assert_eq!(rows(page)[1].of, "src/a.rs: A");
    }
}
