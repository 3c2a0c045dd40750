//! Follows paths to the files that define what they name.

use crate::graph::Graph;
use crate::modules::{Module, Modules, Segments};

/// More imports of imports than any crate has.
const MOST_STEPS: usize = 32;

/// What a path names.
enum Target<'a> {
    Module(Segments),
    /// Something in a module.
    Item(&'a Module),
}

/// Which file depends on which.
pub fn edges(modules: &Modules) -> Graph {
    let mut graph = Graph::default();
    for (at, module) in modules {
        for path in &module.paths {
            if let Some(Target::Item(to)) = find(modules, at, path, MOST_STEPS) {
                graph.add(&module.file, &to.file);
            }
        }
        for path in &module.globs {
            if let Some(Target::Module(to)) = find(modules, at, path, MOST_STEPS)
                && let Some(to) = modules.get(&to)
            {
                graph.add(&module.file, &to.file);
            }
        }
    }
    graph
}

/// What `path` names in the module `at`; nothing of this crate, if none.
fn find<'a>(
    modules: &'a Modules,
    at: &Segments,
    path: &[String],
    steps: usize,
) -> Option<Target<'a>> {
    let (first, rest) = path.split_first()?;
    let mut target = match first.as_str() {
        "crate" => Target::Module(Vec::new()),
        "self" => Target::Module(at.clone()),
        "super" => Target::Module(parent(at)),
        name => named(modules, at, name, rest.is_empty(), steps.checked_sub(1)?)?,
    };
    let mut rest = rest;
    while let (Target::Module(module), Some((name, after))) = (&target, rest.split_first()) {
        let (steps, is_last) = (steps.checked_sub(1)?, after.is_empty());
        target = match name.as_str() {
            "super" => Target::Module(parent(module)),
            name => match named(modules, module, name, is_last, steps) {
                Some(target) => target,
                // A macro has made it.
                None => return modules.get(module).map(Target::Item),
            },
        };
        rest = after;
    }
    Some(target)
}

/// What `name` is in the module `at`.
fn named<'a>(
    modules: &'a Modules,
    at: &Segments,
    name: &str,
    is_last: bool,
    steps: usize,
) -> Option<Target<'a>> {
    let module = modules.get(at)?;
    let child = [at.as_slice(), &[name.to_owned()]].concat();
    let item = module.items.contains(name).then_some(Target::Item(module));
    let child = modules.contains_key(&child).then_some(Target::Module(child));
    // A function may have the name of a module.
    if let Some(target) = if is_last { item.or(child) } else { child.or(item) } {
        return Some(target);
    }
    if let Some(path) = module.imports.get(name) {
        // `use name;` names another crate.
        let is_own = path.first().is_some_and(|first| first != name);
        return is_own.then(|| find(modules, at, path, steps)).flatten();
    }
    let all = |path: &Segments| match find(modules, at, path, steps)? {
        Target::Module(other) => named(modules, &other, name, is_last, steps.checked_sub(1)?),
        Target::Item(_) => None,
    };
    module.globs.iter().find_map(all)
}

fn parent(at: &Segments) -> Segments {
    at.split_last().map(|(_, parent)| parent.to_vec()).unwrap_or_default()
}
