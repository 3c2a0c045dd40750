//! Refused command lines and their errors.

use tempfile::NamedTempFile;

use super::{has_kvm, program, text, vmm};

/// Asserts the beginning of stderr and a further part, for a command line that fails.
fn fails(args: &[&str], begins: &str, contains: &str) {
    let output = vmm().args(args).output().unwrap();
    let text = text(&output);
    assert!(text.starts_with(begins) && text.contains(contains), "{args:?} printed:\n{text}");
    assert_ne!(output.status.code(), Some(0));
}

#[test]
fn refuses_impossible_sizes_with_the_reason() {
    let size = |size| ["--kernel", "k", "--memory", size];
    fails(&size("0"), "error: invalid value '0' for '--memory <SIZE[,OPTION]...>'", "at least 64M");
    fails(&size("16M"), "error: invalid value '16M'", "too small");
    fails(&size("many"), "error: invalid value 'many'", "such as 512M or 4G");
    fails(&size("900T"), "error: --memory 943718400M: this host has ", "M of memory");
}

#[test]
fn names_a_missing_or_invalid_kernel_or_initrd() {
    if !has_kvm("names_a_missing_or_invalid_kernel_or_initrd") {
        return;
    }
    fails(&["--kernel", "/nonexistent/k"], "error: kernel /nonexistent/k: No such file", "");
    fails(
        &["--kernel", "/proc/version"],
        "error: kernel /proc/version is not a kernel: ",
        "bzImage",
    );
    let kernel = program(&[]);
    let path = kernel.path().to_str().unwrap();
    fails(
        &["--kernel", path, "--initrd", "/nonexistent/i"],
        "error: initrd /nonexistent/i: No such file",
        "",
    );
    let large = NamedTempFile::new().unwrap();
    large.as_file().set_len(80 << 20).unwrap();
    let initrd = large.path().to_str().unwrap();
    fails(
        &["--memory", "64M", "--kernel", path, "--initrd", initrd],
        "error: the initrd does not fit in guest RAM: it needs 80 MiB",
        "--memory",
    );
}

#[test]
fn refuses_an_invalid_pci_address() {
    if !has_kvm("refuses_an_invalid_pci_address") {
        return;
    }
    fails(
        &["--kernel", "/proc/version", "--vfio", "nvme0"],
        "error: --vfio: 'nvme0' is not a PCI address",
        "0000:01:00.0",
    );
    let twice = ["--kernel", "/proc/version", "--vfio", "0000:ff:1f.0", "--vfio", "0000:ff:1f.0"];
    fails(&twice, "error: --vfio 0000:ff:1f.0: given twice", "");
}

#[test]
fn refuses_a_cmdline_longer_than_the_kernels_limit() {
    if !has_kvm("refuses_a_cmdline_longer_than_the_kernels_limit") {
        return;
    }
    let kernel = program(&[]);
    let cmdline = "x".repeat(4096);
    let path = kernel.path().to_str().unwrap();
    fails(
        &["--kernel", path, "--cmdline", &cmdline],
        "error: --cmdline is too long",
        "at most 2047",
    );
}
