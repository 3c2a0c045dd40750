//! The project's programs for L1 and L2. They are static, because L1 and L2 have no libraries.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Tool;
use crate::{Arch, Error, say};

/// The script that adds the target of arm64 to Rust.
const RUST_FOR_AARCH64: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rust-for-aarch64");

/// The paths of the programs on the host.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The architecture for which they are built.
    pub arch: Arch,
    /// The VMM.
    pub vmm: PathBuf,
    /// The init of L1.
    pub agent: PathBuf,
    /// The init of L2.
    pub guest: PathBuf,
    /// The program that compares the model of /dev/vfio with L1's /dev/vfio.
    pub conformance: PathBuf,
    /// The folder of the examples.
    pub examples: PathBuf,
}

impl Programs {
    /// Builds the programs. Cargo builds only what has changed. The target is given explicitly, so
    /// that RUSTFLAGS do not apply to build scripts.
    pub fn build(arch: Arch) -> Result<Self, Error> {
        say("building vmm, guest, agent, conformance and the examples (release, static)");
        let (target, platform) = (target_folder(), arch.platform());
        cargo_for(arch)?
            .args(["build", "--release", "--target", platform.target, "--target-dir"])
            .args([&target])
            .args(["--package", "vmm", "--package", "guest", "--package", "lab"])
            .args(["--package", "conformance", "--bin", "conformance"])
            .args(["--bin", "vmm", "--bin", "guest", "--bin", "agent"])
            .args(["--package", "vfio-passthrough"])
            .args(platform.examples.iter().flat_map(|name| ["--example", name]))
            .args(["--features", "vfio-passthrough/kvm"])
            .envs(platform.linker)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // This variable would take precedence over RUSTFLAGS.
            .without_env("CARGO_ENCODED_RUSTFLAGS")
            .folder(&workspace())
            .run()?;
        let built = target.join(platform.target).join("release");
        Ok(Self {
            arch,
            vmm: built.join("vmm"),
            agent: built.join("agent"),
            guest: built.join("guest"),
            conformance: built.join("conformance"),
            examples: built.join("examples"),
        })
    }
}

/// Cargo, with Rust's standard library for an architecture.
fn cargo_for(arch: Arch) -> Result<Tool, Error> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if arch == Arch::X86_64 {
        return Ok(Tool::new(cargo));
    }
    let folder = target_of_cargo().join("aarch64");
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let printed = Tool::new(RUST_FOR_AARCH64).args([&folder]).output()?;
    match String::from_utf8_lossy(&printed).trim() {
        "" => Ok(Tool::new(cargo)),
        // Cargo and rustc of a copy of the toolchain, which build the library from its sources.
        copy => Ok(Tool::new(Path::new(copy).join("cargo"))
            .env("RUSTC", Path::new(copy).join("rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["-Z", "build-std=std,panic_abort"])),
    }
}

/// Builds the program `on-model`, and the library that it preloads; returns its path.
pub fn on_model() -> Result<PathBuf, Error> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo).args(["build", "--package", "preload"]).folder(&workspace()).run()?;
    Ok(target_of_cargo().join("debug/on-model"))
}

/// The root folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A target folder within cargo's, so that this build does not wait for the lock of the other.
fn target_folder() -> PathBuf {
    target_of_cargo().join("lab")
}

fn target_of_cargo() -> PathBuf {
    let set = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| workspace().join("target"))
}
