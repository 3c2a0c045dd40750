//! No two files, and no two rooms, of the product's crates import each other in a circle.

use std::path::{Path, PathBuf};

use house::Graph;

/// The crates of the product.
const CRATES: [&str; 5] = ["vfio-model", "vfio-passthrough", "devices", "resources", "vmm"];

fn graphs() -> Result<Vec<(&'static str, Graph)>, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = CRATES.map(|name| (name, workspace.join(name).join("src")));
    let graph = |(name, folder): (&'static str, PathBuf)| {
        let sources = house::read(&folder).map_err(|error| error.to_string())?;
        Ok((name, house::files(&sources)?))
    };
    folders.into_iter().map(graph).collect()
}

/// The circles of the crates.
fn circles(of: impl Fn(&Graph) -> Graph) -> Result<Vec<String>, String> {
    let graphs = graphs()?;
    let circles = graphs.iter().flat_map(|(name, files)| {
        let circles = of(files).circles().into_iter();
        circles.map(move |circle| format!("{name}: {circle}"))
    });
    Ok(circles.collect())
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_eq!(circles(Graph::clone).unwrap(), [""; 0]);
}

#[test]
fn no_rooms_import_each_other_in_a_circle() {
    assert_eq!(circles(house::rooms).unwrap(), [""; 0]);
}
