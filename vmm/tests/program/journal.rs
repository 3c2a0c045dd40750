//! What is said where the standard error is journald's.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::*;

/// What a VMM says that finds no kernel, with its standard error at a socket, and with that
/// socket's device and inode, changed so, in JOURNAL_STREAM.
fn said(inode: impl Fn(u64) -> u64) -> String {
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
fn the_journal_is_given_levels_and_others_are_not() {
    let journal = said(|inode| inode);
    assert!(
        !journal.is_empty() && journal.lines().all(|line| line.starts_with("<3>")),
        "{journal}"
    );
    let plain = said(|inode| inode + 1);
    assert!(plain.starts_with("error: "), "{plain}");
}
