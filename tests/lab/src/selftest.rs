//! Builds the kernel's own tests of iommufd from Debian's source of the small 7.3 kernel.

use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::Tool;
use crate::{Error, packages, say, small_kernel};

/// The folder of the tests in the kernel's source.
const FOLDER: &str = "tools/testing/selftests/iommu";

/// The tests. `iommufd_fail_nth` makes each allocation of the kernel fail in turn.
pub const PROGRAMS: &[&str] = &["iommufd", "iommufd_fail_nth"];

/// Returns the folder of the programs, which are static; builds them if the cache lacks them. They
/// need a kernel with `CONFIG_IOMMUFD_TEST`.
pub fn programs(cache: &Cache) -> Result<PathBuf, Error> {
    cache.entry("iommufd-selftests-7.3", |draft| build(cache, draft))
}

fn build(cache: &Cache, draft: &Path) -> Result<(), Error> {
    packages::ensure(packages::KERNEL_BUILD)?;
    packages::ensure(packages::SELFTESTS)?;
    let work = cache.scratch()?;
    let source = work.path().join("linux");
    small_kernel::unpack_source(small_kernel::OF_7_3, work.path(), &source)?;
    say("building the kernel's tests of iommufd");
    small_kernel::make(&source).args(["-s", "headers"]).run()?;
    PROGRAMS.iter().try_for_each(|program| compile(&source, program, &draft.join(program)))
}

/// Compiles a test as the kernel's Makefile does, but static.
fn compile(source: &Path, program: &str, to: &Path) -> Result<(), Error> {
    Tool::new("cc")
        .args(["-static", "-O2", "-w", "-D_GNU_SOURCE=", "-I..", "-isystem"])
        .args([source.join("usr/include")])
        .args([&format!("{program}.c"), "-lcap", "-o"])
        .args([to])
        .folder(&source.join(FOLDER))
        .run()
}
