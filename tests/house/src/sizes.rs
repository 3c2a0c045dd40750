//! Sizes of functions and files, in lines of code: no blank lines, no comments, no test modules.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The sizes of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Lines of code of the file, without its test modules.
    pub code: usize,
    /// The name and the lines of each function, signature and braces included.
    pub functions: Vec<(String, usize)>,
}

/// Every Rust file below a folder, but for those of tests: `tests.rs`, `tests/` and `naive.rs`.
///
/// # Errors
///
/// A folder cannot be read.
pub fn product_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        match stem {
            "tests" | "naive" | "fixture" | "interleavings" => {}
            _ if path.is_dir() => files.extend(product_files(&path)?),
            _ if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            _ => {}
        }
    }
    files.sort();
    Ok(files)
}

/// The sizes of a file with this text.
///
/// # Errors
///
/// The text is no Rust.
pub fn sizes(text: &str) -> syn::Result<Sizes> {
    let mut counter =
        Counter { lines: text.lines().collect(), tests: Vec::new(), sizes: Sizes::default() };
    counter.visit_file(&syn::parse_file(text)?);
    counter.sizes.code = counter.code(0, counter.lines.len());
    Ok(counter.sizes)
}

struct Counter<'a> {
    lines: Vec<&'a str>,
    /// The lines of test modules: first, and behind the last.
    tests: Vec<(usize, usize)>,
    sizes: Sizes,
}

impl Counter<'_> {
    fn code(&self, first: usize, end: usize) -> usize {
        let in_tests = |line: usize| self.tests.iter().any(|(a, b)| (*a..*b).contains(&line));
        let lines = self.lines.iter().enumerate().take(end).skip(first);
        let is_code = |text: &str| !text.is_empty() && !text.starts_with("//");
        lines.filter(|(line, text)| is_code(text.trim()) && !in_tests(*line)).count()
    }

    fn function(&mut self, name: &syn::Ident, span: Span) {
        let lines = self.code(span.start().line.saturating_sub(1), span.end().line);
        self.sizes.functions.push((name.to_string(), lines));
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    let text = |attribute: &syn::Attribute| match &attribute.meta {
        syn::Meta::List(list) => list.tokens.to_string(),
        _ => String::new(),
    };
    attributes.iter().any(|own| own.path().is_ident("cfg") && text(own).contains("test"))
}

impl<'ast> Visit<'ast> for Counter<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if is_test(&module.attrs) {
            let span = module.span();
            self.tests.push((span.start().line.saturating_sub(1), span.end().line));
        } else {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let start = function.sig.span().join(function.block.span());
        self.function(&function.sig.ident, start.unwrap_or_else(|| function.block.span()));
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        let start = function.sig.span().join(function.block.span());
        self.function(&function.sig.ident, start.unwrap_or_else(|| function.block.span()));
        visit::visit_impl_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_code_and_neither_comments_nor_tests() {
        let text = "\
//! Docs.

/// A function.
fn one() {
    // Why.
    two();

}

#[cfg(test)]
mod tests {
    fn three() {}
}
";
        let found = sizes(text).unwrap();
        assert_eq!(found, Sizes { code: 3, functions: vec![("one".to_owned(), 3)] });
    }
}
