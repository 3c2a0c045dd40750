//! A guest (L2): its description, and the result of a boot.

use guest::Report;
use serde_json::Value;

use crate::lab::place;
use crate::protocol::{Ending, Fifo, Finished, Program, Request, Trigger};
use crate::{Error, L1, Monitor, Run, log};

/// The file in L1 to which the VMM writes its counters.
const STATS: &str = "/tmp/stats.json";

/// The description of a guest, which the VMM boots in L1.
#[derive(Clone, Debug)]
pub struct Guest {
    /// How the VMM is run; [`boot`](Self::boot) sets its arguments.
    pub program: Program,
    steps: String,
    command_line: String,
    memory: String,
    cpus: u32,
    devices: Vec<String>,
    kernel: String,
    initrd: String,
    extra: Vec<String>,
    expected_log: Vec<String>,
}

impl Guest {
    /// A guest with one vCPU, 512 MiB and no device. It carries out `steps` (see the crate `guest`)
    /// and ends.
    #[must_use]
    pub fn new(steps: &str) -> Self {
        Self {
            program: Program::default(),
            steps: steps.into(),
            command_line: "console=ttyS0 panic=-1 quiet".into(),
            memory: "512M".into(),
            cpus: 1,
            devices: Vec::new(),
            kernel: place::KERNEL.into(),
            initrd: place::INITRD.into(),
            // The VMM ends when the guest panics or resets.
            extra: vec!["--no-reboot".into()],
            expected_log: Vec::new(),
        }
    }

    /// Lets the VMM boot the guest again when it reboots.
    #[must_use]
    pub fn reboots(mut self) -> Self {
        self.extra.retain(|argument| argument != "--no-reboot");
        self
    }

    /// Assigns a device of L1: an address, or a folder in sysfs.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.into());
        self
    }

    /// Assigns a device of L1 that has no reset.
    #[must_use]
    pub fn device_without_reset(self, device: &str) -> Self {
        self.device(&format!("{device},reset=none"))
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    /// Sets the RAM, in the notation of the VMM's `--memory`.
    #[must_use]
    pub fn memory(self, memory: &str) -> Self {
        Self { memory: memory.into(), ..self }
    }

    /// Sets the part of the kernel's command line before the steps.
    #[must_use]
    pub fn command_line(self, command_line: &str) -> Self {
        Self { command_line: command_line.into(), ..self }
    }

    /// Sets the kernel, a file in L1.
    #[must_use]
    pub fn kernel(self, kernel: &str) -> Self {
        Self { kernel: kernel.into(), ..self }
    }

    /// Uses the small kernel, which has VFIO without an IOMMU; Debian's kernels have not. Only
    /// machines with an edu have it.
    #[must_use]
    pub fn small(self) -> Self {
        self.kernel(place::SMALL_KERNEL).initrd(place::SMALL_INITRD)
    }

    /// Sets the initrd, a file in L1.
    #[must_use]
    pub fn initrd(self, initrd: &str) -> Self {
        Self { initrd: initrd.into(), ..self }
    }

    /// Appends arguments for the VMM.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, extra: impl IntoIterator<Item = S>) -> Self {
        self.extra.extend(extra.into_iter().map(Into::into));
        self
    }

    /// Expects a message with this text in the VMM's log, on standard error. A boot fails if its
    /// VMM ends with status 0, and logs anything else or not this.
    #[must_use]
    pub fn logs(mut self, text: &str) -> Self {
        self.expected_log.push(text.into());
        self
    }

    /// Reads files of L1 when the guest first prints `marker`.
    #[must_use]
    pub fn look_at(mut self, marker: &str, files: &[&str]) -> Self {
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        self.program.triggers.push(Trigger { marker: marker.into(), files, ..Trigger::default() });
        self
    }

    /// Sends requests to the VMM's control socket when the guest first prints `marker`. A request
    /// is a method and the name of a resource.
    #[must_use]
    pub fn ask_at(mut self, marker: &str, socket: &str, asked: &[(&str, &str)]) -> Self {
        let ask = |(method, what): &(&str, &str)| {
            let request = format!("{method} /api/v1/{what} HTTP/1.1\r\nHost: vmm\r\n\r\n");
            (socket.to_owned(), request)
        };
        self.program.triggers.push(Trigger {
            marker: marker.into(),
            asks: asked.iter().map(ask).collect(),
            ..Trigger::default()
        });
        self
    }

    /// Runs another program in L1 when the guest first prints `marker`.
    #[must_use]
    pub fn run_at(mut self, marker: &str, program: Vec<String>) -> Self {
        self.program.triggers.push(Trigger {
            marker: marker.into(),
            program,
            ..Trigger::default()
        });
        self
    }

    /// Sends the VMM a signal when the guest first prints `marker`.
    #[must_use]
    pub fn signal_at(mut self, marker: &str, signal: i32) -> Self {
        self.program.triggers.push(Trigger {
            marker: marker.into(),
            signal: Some(signal),
            ..Trigger::default()
        });
        self
    }

    /// Kills the VMM after `nanoseconds` of L1's clock, unless it has ended.
    #[must_use]
    pub fn kill_after(mut self, nanoseconds: u64) -> Self {
        self.program.signal_after = Some((nanoseconds, 9));
        self
    }

    /// Runs the VMM as `user` without capabilities, with a limit of locked memory in bytes. The
    /// limit does not hold for root.
    #[must_use]
    pub fn limited(mut self, user: u32, memlock: u64) -> Self {
        self.program.user = Some(user);
        self.program.memlock = Some(memlock);
        self
    }

    /// Runs the VMM with these limits of open files, soft and hard.
    #[must_use]
    pub fn open_files(mut self, soft: u64, hard: u64) -> Self {
        self.program.open_files = Some((soft, hard));
        self
    }

    /// Runs the VMM in a control group with this limit, for example of `memory.max`.
    #[must_use]
    pub fn in_cgroup(mut self, file: &str, value: &str) -> Self {
        self.program.cgroup.push((file.into(), value.into()));
        self
    }

    /// Passes open files of L1 to the VMM: see [`Program::open`].
    #[must_use]
    pub fn open(mut self, files: &[String]) -> Self {
        self.program.open = files.to_vec();
        self
    }

    /// Uses an initrd that the agent writes to a FIFO: the contents of this one, and zeros, which
    /// Linux ignores.
    #[must_use]
    pub fn initrd_by_fifo(mut self, zeros: u64) -> Self {
        let path = "/tmp/initrd.fifo".to_owned();
        let from = std::mem::replace(&mut self.initrd, path.clone());
        self.program.fifos.push(Fifo { path, from, zeros });
        self
    }

    /// Uses a kernel that the agent writes to a FIFO: the contents of this one.
    #[must_use]
    pub fn kernel_by_fifo(mut self) -> Self {
        let path = "/tmp/kernel.fifo".to_owned();
        let from = std::mem::replace(&mut self.kernel, path.clone());
        self.program.fifos.push(Fifo { path, from, zeros: 0 });
        self
    }

    /// The kernel's command line: the part set before, and the steps.
    #[must_use]
    pub fn kernel_command_line(&self) -> String {
        format!("{} guest.do={}", self.command_line, self.steps)
    }

    /// The VMM's command line, its path first.
    #[must_use]
    pub fn vmm_arguments(&self) -> Vec<String> {
        let mut arguments = vec![place::VMM.to_owned()];
        let cpus = self.cpus.to_string();
        let command_line = self.kernel_command_line();
        for (name, value) in [
            ("--kernel", &self.kernel),
            ("--initrd", &self.initrd),
            ("--cmdline", &command_line),
            ("--memory", &self.memory),
            ("--cpus", &cpus),
        ] {
            arguments.extend([name.to_owned(), value.clone()]);
        }
        for device in &self.devices {
            arguments.extend(["--vfio".to_owned(), device.clone()]);
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// Boots the guest in `l1` and waits for its end.
    pub fn boot(&self, l1: &mut L1) -> Result<Outcome, Error> {
        self.boot_along(l1, |_, _| Ok(()))
    }

    /// The same. Each time the guest prints, calls `along` with its whole output so far; `along`
    /// may use QEMU's monitor.
    pub fn boot_along(
        &self,
        l1: &mut L1,
        along: impl FnMut(&mut Monitor, &str) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let mut program = self.program.clone();
        program.arguments = self.vmm_arguments();
        program.arguments.extend(["--stats".into(), STATS.into()]);
        if l1.machine().type1 {
            program.arguments.extend(["--iommu".into(), "type1".into()]);
        }
        l1.perform(&Request::Remove { path: STATS.into() })?;
        let run = l1.run_along(program, along)?;
        // A VMM that failed or was killed wrote no counters.
        let stats = l1.read(STATS).unwrap_or_default();
        let outcome = Outcome::new(run, &stats);
        // The messages of other ends are errors, which tests compare.
        let is_ordinary = outcome.finished.ending == Ending::Status(0);
        let lacks_peers = l1.machine().has_iommufd() && !l1.machine().kernel.exports_bars();
        let allowed = lacks_peers.then_some(log::NO_PEERS);
        let surprise = log::surprise(&outcome.stderr, &self.expected_log, allowed);
        match surprise.filter(|_| is_ordinary) {
            Some(why) => Err(Error::Log(format!("{why}\n{}", outcome.details()))),
            None => Ok(outcome),
        }
    }
}

/// The result of a boot of a guest.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How the VMM ended, and the results of its triggers.
    pub finished: Finished,
    /// The output of the guest's console.
    pub console: String,
    /// The VMM's standard error.
    pub stderr: String,
    /// The reports of the guest's init.
    pub reports: Vec<Report>,
    /// The VMM's counters; null if it wrote none.
    pub stats: Value,
}

impl Outcome {
    fn new(run: Run, stats: &str) -> Self {
        Self {
            finished: run.finished,
            reports: guest::reports(&run.stdout),
            console: run.stdout,
            stderr: run.stderr,
            stats: serde_json::from_str(stats).unwrap_or_default(),
        }
    }

    /// Whether the VMM ended with status 0 and the guest's last report is its end.
    #[must_use]
    pub fn is_success(&self) -> bool {
        let ended = matches!(self.reports.last(), Some(Report::End { .. }));
        self.finished.ending == Ending::Status(0) && ended
    }

    /// A counter of the VMM by its path, such as `/exits/total`.
    #[must_use]
    pub fn counter(&self, path: &str) -> Option<u64> {
        self.stats.pointer(path).and_then(Value::as_u64)
    }

    /// The whole result as text, for a failed test.
    #[must_use]
    pub fn details(&self) -> String {
        format!(
            "the VMM ended by {:?}\n--- stderr\n{}\n--- console\n{}\n--- counters\n{}",
            self.finished.ending, self.stderr, self.console, self.stats
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_arguments_describe_the_guest() {
        let guest = Guest::new("hash:4M").device("0000:00:02.0").cpus(2).arguments(["--verbose"]);
        let line = guest.vmm_arguments().join(" ");
        assert!(
            line.starts_with("/vmm --kernel /l2/kernel --initrd /l2/initrd --cmdline "),
            "{line}"
        );
        assert!(line.contains(
            "quiet guest.do=hash:4M --memory 512M --cpus 2 --vfio 0000:00:02.0 --no-reboot --verbose"
        ));
    }

    #[test]
    fn finds_counters_by_their_path() {
        let finished = Finished { ending: Ending::Status(0), elapsed_ns: 1, sightings: Vec::new() };
        let run = Run { finished, stdout: String::new(), stderr: String::new() };
        let outcome = Outcome::new(run, r#"{"exits":{"total":7}}"#);
        assert_eq!(outcome.counter("/exits/total"), Some(7));
        assert_eq!(outcome.counter("/exits/none"), None);
        assert!(!outcome.is_success(), "the guest reported no end");
    }
}
