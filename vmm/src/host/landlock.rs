//! Landlock, where the kernel has it: no file, no TCP port and no process of others is there for
//! the VMM once a guest runs, whatever its lists of system calls let pass. What is open stays open:
//! the right to use a file is looked at when it is opened
//! (Documentation/userspace-api/landlock.rst).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::config::Thread;
use crate::error::Error;

/// The newest whose rights this was tested with. An older kernel takes of them what it knows.
const TESTED: ABI = ABI::V7;

/// Holds the calling thread, and those that it starts, to what is open. There is no way back.
///
/// In the folder of `socket`, files may be removed: the socket is, at the end.
///
/// # Errors
///
/// [`Error::Landlock`], where the kernel has Landlock and refuses this; E2BIG, when 16 parents of
/// this process have done so before.
pub(crate) fn restrict(thread: Thread, socket: Option<&Path>) -> Result<(), Error> {
    let failed = |why: String| Error::Landlock { why };
    let ruled = rule(thread, socket.map(folder)).map_err(|error| failed(error.to_string()))?;
    if ruled == RulesetStatus::NotEnforced {
        log::info!("this kernel has no Landlock: files are out of reach by seccomp only");
    }
    Ok(())
}

fn folder(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn rule(
    thread: Thread,
    folder: Option<&Path>,
) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let scope = match thread {
        // It kicks CPUs' threads, which are under the main thread's rules. Before Linux 6.15 a
        // signal to a thread of the same process, but under other rules, was refused, too.
        Thread::Control => Scope::AbstractUnixSocket.into(),
        Thread::Main | Thread::Vcpu => Scope::from_all(TESTED),
    };
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TESTED))?
        .handle_access(AccessNet::from_all(TESTED))?
        .scope(scope)?;
    let mut rules = rules.create()?;
    if let Some(folder) = folder {
        let remove = PathBeneath::new(PathFd::new(folder)?, AccessFs::RemoveFile);
        rules = rules.add_rule(remove)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Whether this kernel knows all of the rules. For tests that need them.
#[cfg(test)]
pub(crate) fn is_whole() -> bool {
    let ruled =
        std::thread::spawn(|| matches!(rule(Thread::Main, None), Ok(RulesetStatus::FullyEnforced)));
    ruled.join().is_ok_and(|is_whole| is_whole)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use nix::sys::signal::kill;
    use nix::unistd::getppid;
    use tempfile::TempDir;

    use super::*;

    /// What a thread under the rules of `thread` comes to; none where this kernel does not know all
    /// of them.
    fn under<T: Send>(
        thread: Thread,
        socket: Option<&Path>,
        does: impl FnOnce() -> T + Send,
    ) -> Option<T> {
        if !is_whole() {
            eprintln!("NOT RUN: this kernel has not all of Landlock's ABI 7");
            return None;
        }
        let ruled = || {
            restrict(thread, socket).unwrap();
            does()
        };
        Some(thread::scope(|scope| scope.spawn(ruled).join().unwrap()))
    }

    fn refusal<T>(result: std::io::Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    const REFUSED: Option<ErrorKind> = Some(ErrorKind::PermissionDenied);

    #[test]
    fn what_is_open_is_used_and_nothing_else_is_reached() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("file");
        let mut open = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        for thread in [Thread::Main, Thread::Control] {
            let seen = under(thread, None, || {
                open.write_all(b"open").unwrap();
                open.set_len(2).unwrap();
                open.read_to_end(&mut Vec::new()).unwrap();
                [
                    refusal(File::open(&path)),
                    refusal(File::create(folder.path().join("new"))),
                    refusal(fs::read_dir("/")),
                    refusal(fs::remove_file(&path)),
                    refusal(fs::rename(&path, folder.path().join("new"))),
                    refusal(fs::create_dir(folder.path().join("new"))),
                    refusal(TcpStream::connect(there)),
                    refusal(TcpListener::bind("127.0.0.1:0")),
                ]
            });
            assert!(seen.is_none_or(|seen| seen == [REFUSED; 8]), "{thread:?}: {seen:?}");
        }
        assert!(path.exists());
    }

    #[test]
    fn of_files_only_the_sockets_folder_loses_some() {
        let [own, other] = [(); 2].map(|()| TempDir::new().unwrap());
        let [socket, file] = [&own, &other].map(|folder| folder.path().join("vm.sock"));
        for path in [&socket, &file] {
            fs::write(path, "x").unwrap();
        }
        let seen = under(Thread::Main, Some(&socket), || {
            [
                refusal(fs::read(&socket)),
                refusal(fs::remove_file(&file)),
                refusal(fs::remove_file(&socket)),
            ]
        });
        if let Some(seen) = seen {
            assert_eq!(seen, [REFUSED, REFUSED, None]);
            assert_eq!([socket, file].map(|path| path.exists()), [false, true]);
        }
    }

    #[test]
    fn no_signal_is_sent_to_other_processes() {
        // Signal 0: only whether one may be sent.
        let send = || kill(getppid(), None);
        assert_eq!(send(), Ok(()), "without the rules it may");
        let sent = under(Thread::Main, None, send);
        assert!(sent.is_none_or(|sent| sent == Err(nix::Error::EPERM)), "{sent:?}");
    }

    #[test]
    fn a_socket_without_a_folder_is_in_the_current_one() {
        let folders = ["vm.sock", "run/vm.sock", "/vm.sock"].map(|path| folder(Path::new(path)));
        assert_eq!(folders, [".", "run", "/"].map(Path::new));
    }
}
