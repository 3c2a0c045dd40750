//! A control group for a program.

use std::fs;
use std::io::Result;
use std::path::Path;

use nix::mount::{MsFlags, mount};

const ROOT: &str = "/sys/fs/cgroup";
/// The group of the program.
const GROUP: &str = "/sys/fs/cgroup/lab";

/// Does `work`, which starts a program, in a new control group with these limits. A program starts
/// in the group of its parent, so the agent enters the group meanwhile.
pub fn inside<T>(limits: &[(String, String)], work: impl FnOnce() -> Result<T>) -> Result<T> {
    if limits.is_empty() {
        return work();
    }
    mount_once()?;
    // The group of the last program, which has ended.
    if Path::new(GROUP).exists() {
        fs::remove_dir(GROUP)?;
    }
    fs::create_dir(GROUP)?;
    for (file, value) in limits {
        fs::write(Path::new(GROUP).join(file), value)?;
    }
    enter(GROUP)?;
    let result = work();
    enter(ROOT)?;
    result
}

fn mount_once() -> Result<()> {
    if !Path::new(ROOT).join("cgroup.procs").exists() {
        mount(Some("cgroup2"), ROOT, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory +pids")?;
    }
    Ok(())
}

/// Moves this process, where 0 stands for it (cgroups(7)).
fn enter(group: &str) -> Result<()> {
    fs::write(Path::new(group).join("cgroup.procs"), "0")
}
