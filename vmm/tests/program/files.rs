//! Boot files that are pipes, and files that no guest boots from.

use std::fs;
use std::thread;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// Runs a line of bash, in which VMM, KERNEL and INITRD stand for the program and its files. The
/// guest reboots once.
fn bash(line: &str) -> Output {
    let (kernel, initrd) = (reboots_once(), initramfs());
    let line = line
        .replace("VMM", &format!("{} --memory 64M", env!("CARGO_BIN_EXE_vmm")))
        .replace("KERNEL", kernel.path().to_str().unwrap())
        .replace("INITRD", initrd.path().to_str().unwrap());
    Command::new("bash").args(["-c", &line]).stdin(Stdio::null()).output().unwrap()
}

/// The content is kept for the second boot.
#[test]
fn a_guest_boots_and_reboots_from_pipes() {
    if !has_kvm("a_guest_boots_and_reboots_from_pipes") {
        return;
    }
    for line in [
        "VMM --kernel <(cat KERNEL) --initrd <(cat INITRD)",
        "cat KERNEL | VMM --kernel /dev/stdin --initrd INITRD",
        "cat INITRD | VMM --kernel KERNEL --initrd /proc/self/fd/0",
        "VMM --kernel KERNEL --initrd /dev/stdin <INITRD",
        "VMM --kernel fd=3 --initrd fd=4 3< <(cat KERNEL) 4< <(cat INITRD)",
        "VMM --kernel <(gzip -c KERNEL | gzip -dc) --initrd <(gzip -c INITRD)",
    ] {
        let output = bash(line);
        assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)), "{line}");
        assert_eq!(output.stdout, b"\n\n", "{line}");
    }
}

#[test]
fn a_guest_boots_from_fifos_with_a_late_writer() {
    if !has_kvm("a_guest_boots_from_fifos_with_a_late_writer") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (kernel, initrd) = (reboots_once(), initramfs());
    let writers = [("k", kernel.path()), ("i", initrd.path())].map(|(name, from)| {
        let (fifo, from) = (folder.path().join(name), from.to_owned());
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            fs::copy(from, fifo).unwrap();
        })
    });
    let fifo = folder.path().join("i");
    let output = run(&folder.path().join("k"), &["--initrd", fifo.to_str().unwrap()]);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
    assert_eq!(output.stdout, b"\n\n");
}

#[test]
fn a_signal_ends_a_vmm_that_waits_for_a_fifo() {
    if !has_kvm("a_signal_ends_a_vmm_that_waits_for_a_fifo") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let fifo = folder.path().join("kernel");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let output = bash(&format!("timeout -s INT 1 VMM --kernel {}", fifo.display()));
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(124)));
}

/// Debug information is not loaded.
#[test]
fn a_guest_boots_from_an_elf_file_that_is_larger_than_its_ram() {
    if !has_kvm("a_guest_boots_from_an_elf_file_that_is_larger_than_its_ram") {
        return;
    }
    let kernel = reboots_once();
    kernel.as_file().set_len(100 << 20).unwrap();
    let output = run(kernel.path(), &[]);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
}

/// Lines of bash, the beginning of the error, and a further part of it.
const REFUSED: [(&str, &str, &str); 8] = [
    ("VMM --kernel /tmp", "kernel /tmp: it is a folder", "give a file in it"),
    (
        "VMM --kernel KERNEL --initrd /dev/zero",
        "initrd /dev/zero: it is a character device",
        "pipe",
    ),
    ("VMM --kernel <(true)", "kernel /dev/fd/", "it is empty"),
    ("VMM --kernel KERNEL --initrd <(cat /dev/zero)", "initrd /dev/fd/", "it has more than 64 MiB"),
    (
        "cat KERNEL | VMM --kernel /dev/stdin --initrd /dev/stdin",
        "initrd /dev/stdin: it is empty",
        "once",
    ),
    ("gzip -c KERNEL | VMM --kernel /dev/stdin", "kernel /dev/stdin is not a kernel", "gzip -dc"),
    (
        "VMM --kernel INITRD",
        "kernel ",
        "is not a kernel: it is a cpio archive\n  if it is an initramfs: --initrd ",
    ),
    (
        "VMM --kernel KERNEL --kvm KERNEL",
        "--kvm ",
        "this is not KVM's device node\n  give /dev/kvm",
    ),
];

#[test]
fn names_what_cannot_be_booted_from() {
    if !has_kvm("names_what_cannot_be_booted_from") {
        return;
    }
    for (line, begins, contains) in REFUSED {
        let output = bash(line);
        let text = text(&output);
        let is_named = text.starts_with(&format!("error: {begins}")) && text.contains(contains);
        assert!(is_named && output.status.code() == Some(1), "{line}: {text}");
    }
}

#[test]
fn warns_of_an_initramfs_that_linux_does_not_unpack_and_boots() {
    if !has_kvm("warns_of_an_initramfs_that_linux_does_not_unpack_and_boots") {
        return;
    }
    for (line, warning) in [
        (r"VMM --kernel KERNEL --initrd <(printf '\x04\x22\x4d\x18')", "compress it with: lz4 -l"),
        ("VMM --kernel KERNEL --initrd KERNEL", "this seems to be a kernel, which --kernel takes"),
        ("VMM --kernel KERNEL --initrd <(echo no)", "its format is unknown"),
    ] {
        let output = bash(line);
        let text = text(&output);
        // The guest boots twice.
        assert_eq!(text.lines().filter(|log| log.contains(warning)).count(), 1, "{line}: {text}");
        assert_eq!(text.lines().count(), 1, "{line}: {text}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn names_a_socket_path_that_cannot_be_made() {
    if !has_kvm("names_a_socket_path_that_cannot_be_made") {
        return;
    }
    let long = "x".repeat(200);
    for (path, contains) in [
        ("/nonexistent/s", "mkdir -p"),
        (long.as_str(), "at most 107 bytes"),
        ("/tmp", "choose another path"),
    ] {
        let text = text(&bash(&format!("VMM --kernel KERNEL --control {path}")));
        assert!(text.starts_with("error: --control ") && text.contains(contains), "{text}");
    }
}
