//! Refused command lines and their errors.

use std::process::Command;

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
fn refuses_limits_of_the_process_that_are_too_low() {
    let kernel = ["--kernel", "/proc/version", "--memory", "64M"];
    let with = |limit: &str, more: &[&str], begins: &str, contains: &str| {
        let shell = format!("ulimit {limit}; exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &shell, env!("CARGO_BIN_EXE_vmm")])
            .args(kernel)
            .args(more)
            .output()
            .unwrap();
        let text = text(&output);
        assert!(text.starts_with(begins) && text.contains(contains), "{limit} printed:\n{text}");
        assert_eq!(output.status.code(), Some(1), "{limit}");
    };
    let device = ["--vfio", "0000:ff:1f.0"];
    let files =
        "error: the VMM opens up to 41 files, and the process's limit is 40 (RLIMIT_NOFILE)";
    with("-n 40", &device, files, "'ulimit -n 41', 'LimitNOFILE=41'");
    let space = "error: guest RAM of 64 MiB needs 129 MiB, and the limit of this process is 97 MiB";
    with("-v 100000", &[], space, "'ulimit -v 132096'");
    with("-d 100000", &[], space, "(RLIMIT_DATA)");
    if !has_kvm("refuses_limits_of_the_process_that_are_too_low") {
        return;
    }
    // The VMM raises a soft limit, and comes as far as the kernel.
    ["-n 40", "-S -n 20", "-S -v 100000", "-S -d 100000"].iter().for_each(|limit| {
        with(limit, &[], "error: kernel /proc/version", "not a kernel");
    });
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
