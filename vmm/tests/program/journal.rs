//! Messages on a standard error that is the journal.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::*;

/// The messages of a VMM without a kernel. Its standard error is a socket, and JOURNAL_STREAM has
/// the socket's device, and its inode changed by `inode`.
fn messages(inode: impl Fn(u64) -> u64) -> String {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let theirs = File::from(OwnedFd::from(theirs));
    let metadata = theirs.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), inode(metadata.ino()));
    let status = vmm()
        .args(["--kernel", "/nonexistent/kernel"])
        .env("JOURNAL_STREAM", stream)
        .stderr(theirs)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn adds_levels_only_for_the_journal() {
    let journal = messages(|inode| inode);
    assert!(
        !journal.is_empty() && journal.lines().all(|line| line.starts_with("<3>")),
        "{journal}"
    );
    let plain = messages(|inode| inode + 1);
    assert!(plain.starts_with("error: "), "{plain}");
}
