//! The project's programs that run in L1 and L2, built static: there is nothing else there.

use std::env;
use std::path::{Path, PathBuf};

use crate::command::Tool;
use crate::{Error, say};

/// Given explicitly, so that the flags hold for the programs and not for build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where they are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The VMM.
    pub vmm: PathBuf,
    /// The init of L1.
    pub agent: PathBuf,
    /// The init of L2.
    pub guest: PathBuf,
    /// What holds the model of /dev/vfio against L1's.
    pub conformance: PathBuf,
    /// The example that attaches and detaches.
    pub attach: PathBuf,
}

impl Programs {
    /// Builds them; does nothing if they are as new as their sources.
    pub fn build() -> Result<Self, Error> {
        say("building vmm, guest, agent and conformance (release, static)");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let target = target_folder();
        Tool::new(cargo)
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .args([&target])
            .args(["--package", "vmm", "--package", "guest", "--package", "lab"])
            .args(["--package", "conformance", "--bin", "conformance"])
            .args(["--bin", "vmm", "--bin", "guest", "--bin", "agent"])
            .args(["--package", "vfio-passthrough", "--example", "attach"])
            .args(["--features", "vfio-passthrough/kvm"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // Flags by another way would win over these.
            .without_env("CARGO_ENCODED_RUSTFLAGS")
            .folder(&workspace())
            .run()?;
        let built = target.join(TARGET).join("release");
        Ok(Self {
            vmm: built.join("vmm"),
            agent: built.join("agent"),
            guest: built.join("guest"),
            conformance: built.join("conformance"),
            attach: built.join("examples/attach"),
        })
    }
}

/// The root of the source tree.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Beside cargo's own, so that the two builds do not lock each other out.
fn target_folder() -> PathBuf {
    let set = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| workspace().join("target")).join("lab")
}
