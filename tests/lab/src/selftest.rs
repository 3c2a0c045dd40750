//! Builds the kernel's own tests of VFIO and iommufd from Debian's source of the small 7.3 kernel.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::Tool;
use crate::{Error, packages, say, small_kernel};

/// The folder of all tests in the kernel's source.
const FOLDER: &str = "tools/testing/selftests";

/// The tests of iommufd. `iommufd_fail_nth` makes each allocation of the kernel fail in turn.
pub const PROGRAMS: &[&str] = &["iommufd", "iommufd_fail_nth"];

/// The tests of VFIO.
pub const VFIO_PROGRAMS: &[&str] = &[
    "vfio_iommufd_setup_test",
    "vfio_dma_mapping_test",
    "vfio_dma_mapping_mmio_test",
    "vfio_pci_device_test",
    "vfio_pci_device_init_perf_test",
    "vfio_pci_driver_test",
    "vfio_pci_sriov_uapi_test",
];

/// The library of the tests of VFIO.
const VFIO_LIBRARY: &[&str] = &[
    "iommu",
    "iova_allocator",
    "libvfio",
    "sysfs",
    "vfio_pci_device",
    "vfio_pci_driver",
    "drivers/ioat/ioat",
    "drivers/dsa/dsa",
    "drivers/nv_falcon/nv_falcon",
    "drivers/igb/igb",
];

/// Returns the folder of the tests of iommufd, which are static; builds them if the cache lacks
/// them. They need a kernel with `CONFIG_IOMMUFD_TEST`.
pub fn programs(cache: &Cache) -> Result<PathBuf, Error> {
    cache.entry("iommufd-selftests-7.3", |draft| {
        let work = cache.scratch()?;
        let source = Source::fetch(work.path())?;
        let mut programs = PROGRAMS.iter();
        programs.try_for_each(|name| source.iommufd_program(name, &draft.join(name)))
    })
}

/// Returns the folder of the tests of VFIO; builds them if the cache lacks them. Those in `static`
/// are for L1, which has no libraries, and those in `dynamic` can preload one.
pub fn vfio_programs(cache: &Cache) -> Result<PathBuf, Error> {
    cache.entry("vfio-selftests-7.3", |draft| {
        let work = cache.scratch()?;
        let source = Source::fetch(work.path())?;
        for (folder, options) in [("static", &["-static"][..]), ("dynamic", &[])] {
            let folder = draft.join(folder);
            fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
            let mut programs = VFIO_PROGRAMS.iter();
            programs.try_for_each(|name| source.vfio_program(name, &folder, options))?;
        }
        Ok(())
    })
}

/// The kernel's source, with its headers for programs.
struct Source {
    root: PathBuf,
}

impl Source {
    fn fetch(work: &Path) -> Result<Self, Error> {
        packages::ensure(packages::KERNEL_BUILD)?;
        packages::ensure(packages::SELFTESTS)?;
        let root = work.join("linux");
        small_kernel::unpack_source(small_kernel::OF_7_3, work, &root)?;
        say("building the kernel's own tests");
        small_kernel::make(&root).args(["-s", "headers"]).run()?;
        Ok(Self { root })
    }

    /// Compiles a test as the kernel's Makefile does.
    fn iommufd_program(&self, name: &str, to: &Path) -> Result<(), Error> {
        let file = format!("{name}.c");
        self.compile("iommu", &["-static", &file, "-lcap"], to)
    }

    fn vfio_program(&self, name: &str, folder: &Path, options: &[&str]) -> Result<(), Error> {
        let library = VFIO_LIBRARY.iter().map(|part| format!("lib/{part}.c"));
        let files: Vec<String> = [format!("{name}.c")].into_iter().chain(library).collect();
        let files = files.iter().map(String::as_str);
        let own = ["-Ilib/include", "-I../../../include", "-pthread"];
        let words = [&own, options].concat().into_iter().chain(files).chain(["-luuid"]);
        self.compile("vfio", &words.collect::<Vec<_>>(), &folder.join(name))
    }

    /// Compiles in one of the folders of tests.
    fn compile(&self, folder: &str, words: &[&str], to: &Path) -> Result<(), Error> {
        let headers: [OsString; 2] = ["-isystem".into(), self.root.join("usr/include").into()];
        Tool::new("cc")
            .args(["-O2", "-w", "-D_GNU_SOURCE=", "-I.."])
            .args(headers)
            .args(words)
            .args([Path::new("-o"), to])
            .folder(&self.root.join(FOLDER).join(folder))
            .run()
    }
}
