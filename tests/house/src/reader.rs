//! Reads one file: its modules, and the paths in its code.

use std::path::PathBuf;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, File, ImplItem, Item, ItemMod, Macro, Path, Signature, UseTree};

use crate::modules::{Declared, Module, Modules, Segments};

/// The modules in `file`, which is called `name`, and those that it declares.
pub fn read(
    file: &File,
    name: &str,
    (path, folder): (Segments, PathBuf),
) -> (Modules, Vec<Declared>) {
    let mut reader = Reader { name, modules: Modules::new(), declared: Vec::new(), path, folder };
    reader.module();
    reader.visit_file(file);
    (reader.modules, reader.declared)
}

struct Reader<'a> {
    name: &'a str,
    modules: Modules,
    declared: Vec<Declared>,
    /// The module that is read now.
    path: Segments,
    /// The folder of the files of modules that it declares.
    folder: PathBuf,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        let file = self.name.to_owned();
        let new = || Module { file, ..Module::default() };
        self.modules.entry(self.path.clone()).or_insert_with(new)
    }

    fn import(&mut self, mut before: Segments, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.import(before, &path.tree);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(before.clone(), tree));
            }
            UseTree::Name(name) => self.import_name(before, &name.ident.to_string(), None),
            UseTree::Rename(rename) => {
                let as_name = rename.rename.to_string();
                self.import_name(before, &rename.ident.to_string(), Some(as_name));
            }
            UseTree::Glob(_) => self.module().globs.push(before),
        }
    }

    fn import_name(&mut self, mut path: Segments, name: &str, as_name: Option<String>) {
        if name != "self" {
            path.push(name.to_owned());
        }
        let as_name = as_name.or_else(|| path.last().cloned()).unwrap_or_default();
        let module = self.module();
        module.paths.push(path.clone());
        module.imports.insert(as_name, path);
    }

    fn inner_module(&mut self, module: &ItemMod) {
        let name = module.ident.to_string();
        let (path, folder) = (self.path.clone(), self.folder.clone());
        self.path.push(name.clone());
        match &module.content {
            Some((_, items)) => {
                self.folder.push(name);
                self.module();
                items.iter().for_each(|item| self.visit_item(item));
            }
            None => {
                let declared = Declared { path: self.path.clone(), folder: folder.clone() };
                self.declared.push(declared);
            }
        }
        (self.path, self.folder) = (path, folder);
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Segments::new(), 0_u8);
        for token in tokens {
            match token {
                TokenTree::Ident(name) if path.is_empty() || colons == 2 => {
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons = colons.saturating_add(1);
                }
                other => {
                    self.end_path(&mut path);
                    colons = 0;
                    match other {
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Ident(name) => path.push(name.to_string()),
                        _ => {}
                    }
                }
            }
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Segments) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.module().paths.push(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_test(attributes(item)) {
            return;
        }
        if let Some(name) = name(item) {
            self.module().items.insert(name);
        }
        match item {
            Item::Mod(module) => self.inner_module(module),
            Item::Use(import) if import.leading_colon.is_none() => {
                self.import(Vec::new(), &import.tree);
            }
            Item::Use(_) => {}
            other => visit::visit_item(self, other),
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Fn(function) => function.attrs.as_slice(),
            ImplItem::Const(constant) => constant.attrs.as_slice(),
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none() {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.module().paths.push(segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast Macro) {
        self.tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }
}

/// Whether code is there for tests only: `#[cfg(test)]`, `#[cfg(all(test, ...))]`.
fn is_test(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| match attribute.meta.require_list() {
        Ok(list) if list.path.is_ident("cfg") => {
            let text = list.tokens.to_string();
            let mut words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            words.any(|word| word == "test") && !text.contains("not")
        }
        _ => false,
    };
    attributes.iter().any(is_test)
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name that an item gives to its module; modules are kept apart.
fn name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(syn::ItemFn { sig: Signature { ident, .. }, .. }) => ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}
