//! Files that are passed in already open.

use super::*;

/// The VMM in a shell that opens files for it.
fn with(arguments: &str, files: &str) -> Output {
    let line = format!(
        "exec {} --memory 64M {arguments} {files}",
        env!("CARGO_BIN_EXE_vmm")
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_guest_is_booted_from_open_files_and_booted_again() {
    if !has_kvm("a_guest_is_booted_from_open_files_and_booted_again") {
        return;
    }
    // The first time it is reset, as a byte of RAM that outlives it tells: cmp byte [0x8000], 1; mov byte [0x8000], 1; je
    let first = [0x80, 0x3d, 0, 0x80, 0, 0, 1, 0xc6, 5, 0, 0x80, 0, 0, 1, 0x74];
    let reset = out(RESET.0, RESET.1);
    let length = u8::try_from(reset.len() + SPIN.len()).unwrap();
    let code = [
        first.to_vec(),
        vec![length],
        reset,
        SPIN.to_vec(),
        out(POWER_OFF.0, POWER_OFF.1),
    ];
    let kernel = program(&[out(COM1, b'.'), code.concat()]);
    let path = kernel.path().display();
    let files = format!("3<{path} 4<{path} 5<>/dev/kvm");
    let output = with("--kernel fd=3 --initrd fd=4 --kvm fd=5", &files);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
    assert_eq!(output.stdout, b"..");
}

#[test]
fn files_that_are_not_what_they_should_be_are_told() {
    if !has_kvm("files_that_are_not_what_they_should_be_are_told") {
        return;
    }
    let kernel = program(&[]);
    let path = kernel.path().display();
    let cases = [
        (
            "--kernel fd=9",
            String::new(),
            "--kernel fd=9: no file was passed by this number (EBADF)",
            "fd=3 3<",
        ),
        (
            "--kernel fd=1",
            String::new(),
            "--kernel fd=1: no file was passed by this number",
            "",
        ),
        (
            "--kernel fd=3 --initrd fd=3",
            format!("3<{path}"),
            "--initrd fd=3: this number is given twice",
            "",
        ),
        (
            "--kernel fd=3",
            "3</dev/null".into(),
            "--kernel fd=3: it is not a regular file",
            "",
        ),
        (
            "--kernel fd=3",
            "3</proc/version".into(),
            "kernel fd=3 is not a kernel: ",
            "bzImage",
        ),
        (
            "--kernel fd=3 --kvm fd=4",
            format!("3<{path} 4</dev/null"),
            "--kvm fd=4: it is not KVM's",
            "3<>/dev/kvm",
        ),
        (
            "--kernel fd=3 --vfio fd=4",
            format!("3<{path} 4</dev/null"),
            "--vfio fd=4: it is not a VFIO group's",
            "/dev/vfio/7",
        ),
        (
            "--kernel fd=3 --vfio fd=4",
            format!("3<{path}"),
            "--vfio fd=4: no file was passed by this number",
            "",
        ),
        (
            "--kernel fd=3 --kvm /nonexistent",
            format!("3<{path}"),
            "no /dev/kvm",
            "modprobe",
        ),
    ];
    for (arguments, files, begins, contains) in cases {
        let output = with(arguments, &files);
        let said = text(&output);
        assert!(
            said.starts_with(&format!("error: {begins}")) && said.contains(contains),
            "{arguments} {files}: {said}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
}
