//! The program's messages and exit status, with guests of a few instructions.
//!
//! The guests are ELF files with a PVH entry, so they start in 32-bit mode and need no kernel. A
//! test that requires `/dev/kvm` prints NOT RUN and its name if `/dev/kvm` does not open.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a failing test panics"
)]

mod control;
mod files;
mod journal;
mod passed_fds;
mod refusals;
mod seccomp;
mod terminal;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempDir};

fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether `/dev/kvm` opens; if not, prints the name of the test.
fn has_kvm(test: &str) -> bool {
    let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !opens {
        eprintln!("NOT RUN: {test}: /dev/kvm does not open");
    }
    opens
}

const LOAD_ADDRESS: u64 = 0x10_0000;
const HEADERS: usize = 64 + 2 * 56;
const NOTE: usize = 20;

/// An ELF file with the PVH entry `code`.
fn elf(code: &[u8]) -> NamedTempFile {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // ET_EXEC, EM_X86_64, version 1; entry, program headers at 64, no sections; sizes.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [LOAD_ADDRESS, 64, 0].iter().for_each(|value: &u64| elf.extend(value.to_le_bytes()));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    segment(&mut elf, 1, HEADERS + NOTE, code.len());
    segment(&mut elf, 4, HEADERS, NOTE);
    // XEN_ELFNOTE_PHYS32_ENTRY (18) of "Xen": the entry point.
    elf.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    elf.extend(b"Xen\0");
    elf.extend((LOAD_ADDRESS as u32).to_le_bytes());
    elf.extend(code);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

fn segment(elf: &mut Vec<u8>, kind: u32, offset: usize, size: usize) {
    elf.extend(kind.to_le_bytes());
    elf.extend(7_u32.to_le_bytes());
    let words = [offset as u64, LOAD_ADDRESS, LOAD_ADDRESS, size as u64, size as u64, 1];
    words.iter().for_each(|word| elf.extend(word.to_le_bytes()));
}

/// `mov dx, port; mov al, value; out dx, al`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

const POWER_OFF: (u16, u8) = (0x604, 0x34);
const RESET: (u16, u8) = (0x606, 0x01);
const COM1: u16 = 0x3f8;
/// `jmp .`.
const SPIN: [u8; 2] = [0xeb, 0xfe];

fn program(parts: &[Vec<u8>]) -> NamedTempFile {
    elf(&[parts.concat(), SPIN.to_vec()].concat())
}

/// An initramfs: an empty cpio archive.
fn initramfs() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "070701{:0>88}{:08X}{:0>8}TRAILER!!!\0", "", 11, "").unwrap();
    file
}

/// A guest that writes a line, resets the machine in its first life, and powers off in its second.
/// A byte of its RAM counts the lives.
fn reboots_once() -> NamedTempFile {
    // cmp byte [0x8000], 1; mov byte [0x8000], 1; je ..
    let first = [0x80, 0x3d, 0, 0x80, 0, 0, 1, 0xc6, 5, 0, 0x80, 0, 0, 1, 0x74];
    let reset = [out(RESET.0, RESET.1), SPIN.to_vec()].concat();
    let over = vec![u8::try_from(reset.len()).unwrap()];
    program(&[out(COM1, b'\n'), first.to_vec(), over, reset, out(POWER_OFF.0, POWER_OFF.1)])
}

fn run(kernel: &Path, args: &[&str]) -> Output {
    vmm().args(["--memory", "64M", "--kernel"]).arg(kernel).args(args).output().unwrap()
}

#[test]
fn a_guest_prints_and_powers_off_with_status_0() {
    if !has_kvm("a_guest_prints_and_powers_off_with_status_0") {
        return;
    }
    let hello = b"hello".iter().map(|byte| out(COM1, *byte));
    let parts: Vec<_> = hello.chain([out(POWER_OFF.0, POWER_OFF.1)]).collect();
    let folder = TempDir::new().unwrap();
    let stats = folder.path().join("stats.json");
    let output = run(program(&parts).path(), &["--stats", stats.to_str().unwrap()]);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
    assert_eq!(output.stdout, b"hello");
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert_eq!(stats["devices"]["serial"]["writes"], 5);
    assert_eq!(stats["devices"]["power"]["writes"], 1);
    assert_eq!(stats["exits"]["io_out"], 6);
}

#[test]
fn a_guest_runs_on_each_kind_of_memory() {
    if !has_kvm("a_guest_runs_on_each_kind_of_memory") {
        return;
    }
    let kernel = program(&[out(COM1, b'.'), out(POWER_OFF.0, POWER_OFF.1)]);
    for memory in ["size=64M,prefault=on", "64M,thp=off", "64M,shared=on,prefault=on", "5G"] {
        let output =
            vmm().args(["--memory", memory, "--kernel"]).arg(kernel.path()).output().unwrap();
        assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)), "{memory}");
        assert_eq!(output.stdout, b".");
    }
}

/// All vCPUs except the first wait for their start; each has a thread that must end.
#[test]
fn a_guest_with_254_cpus_runs_and_ends() {
    if !has_kvm("a_guest_with_254_cpus_runs_and_ends") {
        return;
    }
    let kernel = program(&[out(COM1, b'.'), out(POWER_OFF.0, POWER_OFF.1)]);
    let output = run(kernel.path(), &["--cpus", "254"]);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
    assert_eq!(output.stdout, b".");
}

#[test]
fn with_no_reboot_a_reset_ends_with_status_0() {
    if !has_kvm("with_no_reboot_a_reset_ends_with_status_0") {
        return;
    }
    let output = run(program(&[out(RESET.0, RESET.1)]).path(), &["--no-reboot"]);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
}

/// A guest that prints a dot, counts its lives in RAM that no kernel is loaded to, and resets the
/// machine until the count is `lives`.
fn mortal(lives: u8) -> NamedTempFile {
    let count = [
        &[0xa1][..],          // mov eax, [COUNT]
        &COUNT.to_le_bytes(), //
        &[0x40],              // inc eax
        &[0xa3],              // mov [COUNT], eax
        &COUNT.to_le_bytes(), //
        &[0x83, 0xf8, lives], // cmp eax, lives
        &[0x73, 9],           // jae, over the reset
    ]
    .concat();
    let reset = [out(RESET.0, RESET.1), SPIN.to_vec()].concat();
    program(&[out(COM1, b'.'), count, reset, out(POWER_OFF.0, POWER_OFF.1)])
}

const COUNT: u32 = 0x30_0000;

#[test]
fn a_guest_reboots_50_times_and_leaks_no_files() {
    if !has_kvm("a_guest_reboots_50_times_and_leaks_no_files") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let stats = folder.path().join("stats.json");
    let kernel = mortal(50);
    // A leak of one file per life would exceed this limit.
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 40; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_vmm"),
            "--memory",
            "64M",
        ])
        .args([
            "--stats".as_ref(),
            stats.as_os_str(),
            "--kernel".as_ref(),
            kernel.path().as_os_str(),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
    assert_eq!(output.stdout, [b'.'; 50]);
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert_eq!((&stats["reboots"], &stats["kvm_ioctls"]["create_vm"]), (&49.into(), &50.into()));
}

/// A guest that enters real mode and jumps to the reset entry of a BIOS. Comments give the offset
/// of each part.
fn jump_to_bios() -> Vec<u8> {
    let place = |offset: u32| (LOAD_ADDRESS as u32 + offset).to_le_bytes();
    let (gdtr, gdt) = (place(27), place(33));
    let parts: [&[u8]; 10] = [
        &[0x0f, 0x01, 0x15],                                         // 0: lgdt [27]
        &gdtr,                                                       //
        &[0xea, 14, 0, 0, 0, 8, 0], // 7: jmp 8:14, to a segment of 16 bits that begins at 0
        &[0x0f, 0x20, 0xc0],        // 14: mov eax, cr0
        &[0x24, 0xfe],              // 17: and al, ~PE
        &[0x0f, 0x22, 0xc0],        // 19: mov cr0, eax
        &[0xea, 0xf0, 0xff, 0x00, 0xf0], // 22: jmp f000:fff0
        &[15, 0],                   // 27: the GDT has 16 bytes
        &gdt,                       //
        &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 16, 0x9a, 0, 0], // 33
    ];
    parts.concat()
}

/// A Linux that was built with EFI and finds none jumps to this entry.
#[test]
fn a_jump_to_the_bios_is_a_reset() {
    if !has_kvm("a_jump_to_the_bios_is_a_reset") {
        return;
    }
    let output = run(program(&[jump_to_bios()]).path(), &["--no-reboot"]);
    assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
}

#[test]
fn a_triple_fault_is_reported_as_an_error() {
    if !has_kvm("a_triple_fault_is_reported_as_an_error") {
        return;
    }
    // The interrupt table is empty: the invalid instruction faults, and so do both fault handlers.
    let output = run(elf(&[0x0f, 0x0b]).path(), &[]);
    let text = text(&output);
    assert!(
        text.starts_with("error: vCPU 0 of the guest at rip ") && text.contains("triple fault"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn unclaimed_ports_read_all_ones_and_are_counted() {
    if !has_kvm("unclaimed_ports_read_all_ones_and_are_counted") {
        return;
    }
    // mov dx, 0x80; in al, dx; mov dx, COM1; out dx, al.
    let read = vec![0x66, 0xba, 0x80, 0x00, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee];
    let folder = TempDir::new().unwrap();
    let stats = folder.path().join("stats.json");
    let kernel = program(&[read, out(POWER_OFF.0, POWER_OFF.1)]);
    let output = run(kernel.path(), &["--stats", stats.to_str().unwrap()]);
    assert_eq!(output.stdout, [0xff]);
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert_eq!(stats["devices"]["unclaimed"]["by_address"]["0x80"], 1);
}

/// `mov edi, COUNT; mov ecx, count; mov dx, port; rep ins`, by bytes or by dwords.
fn string_in(port: u16, count: u8, instruction: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let address = COUNT.to_le_bytes();
    [&[0xfc, 0xbf][..], &address, &[0xb9, count, 0, 0, 0, 0x66, 0xba, low, high, 0xf3, instruction]]
        .concat()
}

/// `mov esi, COUNT; mov ecx, count; mov dx, COM1; rep outsb`.
fn print_string(count: u8) -> Vec<u8> {
    let [low, high] = COM1.to_le_bytes();
    let address = COUNT.to_le_bytes();
    [&[0xfc, 0xbe][..], &address, &[0xb9, count, 0, 0, 0, 0x66, 0xba, low, high, 0xf3, 0x6e]]
        .concat()
}

#[test]
fn a_string_instruction_accesses_one_port_many_times() {
    if !has_kvm("a_string_instruction_accesses_one_port_many_times") {
        return;
    }
    // The serial port's line status, a byte each time: the transmitter is empty.
    let status = [string_in(COM1 + 5, 8, 0x6c), print_string(8)].concat();
    // mov eax, 1 << 31; mov dx, 0xcf8; out dx, eax: the first dword of the host bridge's config
    // space.
    let bridge = vec![0xb8, 0, 0, 0, 0x80, 0x66, 0xba, 0xf8, 0x0c, 0xef];
    let identity = [bridge, string_in(0xcfc, 2, 0x6d), print_string(8)].concat();
    let kernel = program(&[status, identity, out(POWER_OFF.0, POWER_OFF.1)]);
    let output = run(kernel.path(), &["--pci-ports"]);
    let expected = [[0x60; 8], [0x36, 0x1b, 0x08, 0x00, 0x36, 0x1b, 0x08, 0x00]].concat();
    assert_eq!((output.stdout.as_slice(), text(&output)), (expected.as_slice(), String::new()));
}

#[test]
fn input_reaches_the_guest() {
    if !has_kvm("input_reaches_the_guest") {
        return;
    }
    // Wait for bit 0 of the line status register, read a byte, write it back; then power off.
    let echo = vec![
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
    ];
    let kernel = program(&[echo.clone(), echo, out(POWER_OFF.0, POWER_OFF.1)]);
    let mut child = vmm()
        .args(["--memory", "64M", "--kernel"])
        .arg(kernel.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"ok").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"ok"[..], Some(0)));
}

#[test]
fn sigterm_ends_a_guest_that_spins() {
    if !has_kvm("sigterm_ends_a_guest_that_spins") {
        return;
    }
    let kernel = program(&[out(COM1, b'\n')]);
    let mut child = vmm()
        .args(["--memory", "64M", "--cpus", "2", "--kernel"])
        .arg(kernel.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The newline shows that the guest runs.
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let begin = Instant::now();
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_guest_runs_with_a_closed_stdin() {
    if !has_kvm("a_guest_runs_with_a_closed_stdin") {
        return;
    }
    let kernel = program(&[out(COM1, b'x'), out(POWER_OFF.0, POWER_OFF.1)]);
    let line = format!(
        "exec {} --memory 64M --kernel {} <&-",
        env!("CARGO_BIN_EXE_vmm"),
        kernel.path().display()
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"x"[..], Some(0)));
}
