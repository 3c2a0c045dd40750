use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;

use nix::pty::openpty;
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe};
use tempfile::TempDir;

use super::*;

const MOST: u64 = 1 << 20;

fn open(path: &Path) -> Result<Opened, Error> {
    Opened::open("kernel", path, MOST)
}

fn refused(path: &Path) -> String {
    open(path).unwrap_err().to_string()
}

fn passed(file: File) -> Opened {
    Opened { what: "initrd", path: "fd=3".into(), file, warned: Once::new() }
}

fn contents(opened: &Opened) -> Vec<u8> {
    let mut contents = Vec::new();
    opened.rewound().unwrap().read_to_end(&mut contents).unwrap();
    contents
}

#[test]
fn names_a_missing_file() {
    assert_eq!(
        refused(Path::new("/nonexistent/bzImage")),
        "kernel /nonexistent/bzImage: No such file or directory (os error 2)\n  \
         to see which files are there: ls /nonexistent"
    );
}

#[test]
fn names_a_file_of_a_wrong_kind_and_what_to_give_instead() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty"), "").unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let terminal = openpty(None, None).unwrap();
    let slave = nix::unistd::ttyname(&terminal.slave).unwrap();
    let cases = [
        (folder.path().to_owned(), "it is a folder\n  give a file in it"),
        (at("empty"), "it is empty\n  copy or build it again"),
        (at("socket"), "it is a socket\n  give a file or a pipe"),
        ("/dev/null".into(), "it is a character device, which may have no end\n  give a file"),
        ("/dev/zero".into(), "it is a character device, which may have no end\n  give a file"),
        (slave, "it is a terminal\n  give a file or a pipe"),
    ];
    for (path, why) in cases {
        let text = refused(&path);
        assert!(text.starts_with(&format!("kernel {}: {why}", path.display())), "{text}");
    }
}

/// The errors of a file that a user may not read; root may read every file.
#[test]
fn names_a_file_that_may_not_be_read() {
    let denied = io::Error::from_raw_os_error(libc::EACCES);
    let text = open_error("initrd", "/boot/initrd.img".into(), denied).to_string();
    assert!(text.starts_with("initrd /boot/initrd.img: Permission denied"), "{text}");
    assert!(text.contains("chmod") && text.ends_with("--initrd fd=3 3</boot/initrd.img"), "{text}");
}

#[test]
fn reads_a_fifo_to_its_end_once_and_keeps_the_content() {
    let folder = TempDir::new().unwrap();
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let content = vec![7; 300_000];
    let (path, sent) = (fifo.clone(), content.clone());
    let writer = thread::spawn(move || fs::write(path, sent).unwrap());
    let opened = open(&fifo).unwrap();
    writer.join().unwrap();
    assert_eq!(opened.size().unwrap(), 300_000);
    for _ in 0..2 {
        assert_eq!(contents(&opened), content);
    }
}

#[test]
fn reads_a_pipe_by_its_path_or_its_descriptor() {
    let (read, write) = pipe().unwrap();
    File::from(write).write_all(b"kernel").unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read));
    assert_eq!(contents(&open(Path::new(&path)).unwrap()), b"kernel");

    let (read, write) = pipe().unwrap();
    File::from(write).write_all(b"initrd").unwrap();
    assert_eq!(contents(&passed(read.into()).readable(MOST).unwrap()), b"initrd");
}

#[test]
fn reads_a_file_without_a_size() {
    assert!(contents(&open(Path::new("/proc/version")).unwrap()).starts_with(b"Linux"));
}

#[test]
fn refuses_a_pipe_that_is_empty_or_has_more_than_guest_ram() {
    let (read, write) = pipe().unwrap();
    drop(write);
    let text = passed(read.into()).readable(MOST).unwrap_err().to_string();
    assert!(text.starts_with("initrd fd=3: it is empty\n  ") && text.contains("pipe"), "{text}");

    let (read, write) = pipe().unwrap();
    // The writer has no end of its own.
    let writer = thread::spawn(move || {
        let mut write = File::from(write);
        while write.write_all(&[0; 4096]).is_ok() {}
    });
    let text = passed(read.into()).readable(MOST).unwrap_err().to_string();
    writer.join().unwrap();
    assert!(text.starts_with("initrd fd=3: it has more than 1 MiB, which is all of"), "{text}");
    assert!(text.contains("--memory"), "{text}");
}

/// A file that grows is read as it was when the VMM asked for its size.
#[test]
fn a_file_that_becomes_shorter_is_named_and_a_growing_one_is_not() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[1; 100]).unwrap();
    file.as_file().set_permissions(fs::Permissions::from_mode(0o400)).unwrap();
    let opened = open(file.path()).unwrap();
    assert!(opened.shrunk(100).is_none());
    file.write_all(&[1; 100]).unwrap();
    assert!(opened.shrunk(100).is_none());
    file.as_file().set_len(60).unwrap();
    let text = opened.shrunk(100).unwrap().to_string();
    assert!(text.contains("it had 100 bytes, and has 60 now\n  start the VMM when"), "{text}");
}
