//! The modules of a crate: which file each is in, what it defines, and which paths its code has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Sources;
use crate::reader;

/// The segments of a path, as the code has it.
pub type Segments = Vec<String>;

/// A module.
#[derive(Debug, Default)]
pub struct Module {
    /// Its file.
    pub file: String,
    /// The names that it defines, but for modules.
    pub items: BTreeSet<String>,
    /// The names that it imports, with their paths.
    pub imports: BTreeMap<String, Segments>,
    /// The modules of which it imports all names.
    pub globs: Vec<Segments>,
    /// The paths in its code.
    pub paths: Vec<Segments>,
}

/// All modules by their paths from the crate's root, which has none.
pub type Modules = BTreeMap<Segments, Module>;

/// A module that a file declares.
pub struct Declared {
    /// Its path from the crate's root.
    pub path: Segments,
    /// The folder in which its file is.
    pub folder: PathBuf,
}

/// Reads the crate from `lib.rs` on.
pub fn read(sources: &Sources) -> Result<Modules, String> {
    let mut modules = Modules::new();
    let mut declared = Vec::new();
    let root = PathBuf::from("lib.rs");
    read_file(sources, &root, (Vec::new(), PathBuf::new()), &mut modules, &mut declared)?;
    while let Some(Declared { path, folder }) = declared.pop() {
        let name = path.last().map(String::as_str).unwrap_or_default();
        let flat = folder.join(format!("{name}.rs"));
        let front = folder.join(name).join("mod.rs");
        let file = [flat, front].into_iter().find(|file| sources.contains_key(file));
        let file = file.ok_or_else(|| format!("no file for {}", path.join("::")))?;
        let below = folder.join(name);
        read_file(sources, &file, (path, below), &mut modules, &mut declared)?;
    }
    Ok(modules)
}

fn read_file(
    sources: &Sources,
    file: &Path,
    (path, folder): (Segments, PathBuf),
    modules: &mut Modules,
    declared: &mut Vec<Declared>,
) -> Result<(), String> {
    let name = file.display().to_string();
    let text = sources.get(file).ok_or_else(|| format!("there is no {name}"))?;
    let parsed = syn::parse_file(text).map_err(|error| format!("{name}: {error}"))?;
    let (found, others) = reader::read(&parsed, &name, (path, folder));
    modules.extend(found);
    declared.extend(others);
    Ok(())
}
