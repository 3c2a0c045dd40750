//! Inherited file descriptors.

use super::*;

/// Runs the VMM in a shell that opens `files` for it.
fn with(arguments: &str, files: &str) -> Output {
    let line = format!("exec {} --memory 64M {arguments} {files}", env!("CARGO_BIN_EXE_vmm"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_guest_boots_and_reboots_from_open_files() {
    if !has_kvm("a_guest_boots_and_reboots_from_open_files") {
        return;
    }
    let kernel = reboots_once();
    let (path, initrd) = (kernel.path().display(), initramfs());
    let files = format!("3<{path} 4<{} 5<>/dev/kvm", initrd.path().display());
    let output = with("--kernel fd=3 --initrd fd=4 --kvm fd=5", &files);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
    assert_eq!(output.stdout, b"\n\n");
}

const KERNEL: &str = "3<KERNEL";
const AND_NULL: &str = "3<KERNEL 4</dev/null";

/// Arguments, files, the beginning of the error, and a further part of the error.
const WRONG: [(&str, &str, &str, &str); 11] = [
    (
        "--kernel fd=9",
        KERNEL,
        "--kernel fd=9: no such file descriptor was passed (EBADF)",
        "fd=3 3<",
    ),
    ("--kernel fd=1", KERNEL, "--kernel fd=1: no such file descriptor was passed", ""),
    ("--kernel fd=3 --initrd fd=3", KERNEL, "--initrd fd=3: this descriptor is given twice", ""),
    ("--kernel fd=4", AND_NULL, "kernel fd=4: it is a character device", "give a file or a pipe"),
    ("--kernel fd=3", "3</proc/version", "kernel fd=3 is not a kernel: ", "bzImage"),
    ("--kernel fd=3 --kvm fd=4", AND_NULL, "--kvm fd=4: the file is not /dev/kvm", "3<>/dev/kvm"),
    ("--kernel fd=3 --kvm /nonexistent", KERNEL, "no /nonexistent: ", "modprobe"),
    (
        "--kernel fd=3 --vfio fd=4",
        AND_NULL,
        "--vfio fd=4: the file is not a VFIO group",
        "/dev/vfio/7",
    ),
    (
        "--kernel fd=3 --container fd=4 --vfio 0000:ff:1f.7",
        AND_NULL,
        "the file that was passed is no VFIO container",
        "/dev/vfio/vfio",
    ),
    ("--kernel fd=3 --container fd=4", KERNEL, "--container fd=4: no such file descriptor", ""),
    ("--kernel fd=3 --vfio fd=4", KERNEL, "--vfio fd=4: no such file descriptor was passed", ""),
];

#[test]
fn names_a_file_descriptor_that_is_wrong_or_missing() {
    if !has_kvm("names_a_file_descriptor_that_is_wrong_or_missing") {
        return;
    }
    let kernel = program(&[]);
    for (arguments, files, begins, contains) in WRONG {
        let files = files.replace("KERNEL", kernel.path().to_str().unwrap());
        let output = with(arguments, &files);
        let stderr = text(&output);
        let is_named = stderr.starts_with(&format!("error: {begins}")) && stderr.contains(contains);
        assert!(is_named, "{arguments} {files}: {stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
}
