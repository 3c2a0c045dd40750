//! What the program refuses, and how it says why.

use tempfile::NamedTempFile;

use super::{has_kvm, program, text, vmm};

/// What stderr begins with and contains for a command line.
fn fails(args: &[&str], begins: &str, contains: &str) {
    let output = vmm().args(args).output().unwrap();
    let text = text(&output);
    assert!(text.starts_with(begins) && text.contains(contains), "{args:?} said:\n{text}");
    assert_ne!(output.status.code(), Some(0));
}

#[test]
fn impossible_sizes_are_refused_with_the_reason() {
    let size = |size| ["--kernel", "k", "--memory", size];
    fails(&size("0"), "error: invalid value '0' for '--memory <SIZE[,OPTION]...>'", "at least 64M");
    fails(&size("16M"), "error: invalid value '16M'", "too small");
    fails(&size("many"), "error: invalid value 'many'", "such as 512M or 4G");
    fails(&size("900T"), "error: --memory 943718400M: this host has ", "M of memory");
}

#[test]
fn a_missing_or_wrong_kernel_or_initrd_is_named() {
    if !has_kvm("a_missing_or_wrong_kernel_or_initrd_is_named") {
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
fn what_is_no_pci_address_is_refused() {
    if !has_kvm("what_is_no_pci_address_is_refused") {
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
fn a_cmdline_that_the_kernel_cannot_take_is_refused() {
    if !has_kvm("a_cmdline_that_the_kernel_cannot_take_is_refused") {
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
