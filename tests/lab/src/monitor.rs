//! QEMU's monitor (QMP): what happens to L1's hardware while it runs.

use std::io::{BufRead as _, BufReader, Error as IoError, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;
use crate::watchdog::PATIENCE;

/// A connection to the monitor.
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the monitor at `path` and greets it.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(Error::file("connect to", path))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(Error::file("set a time-out of", path))?;
        let mut monitor = Self { lines: BufReader::new(stream) };
        // It greets first, and takes no command before its capabilities are agreed on.
        monitor.message("greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command of QMP; what it returns.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let sent = self.lines.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| Error::Monitor { command: command.into(), why: error.to_string() })?;
        loop {
            let message = self.message(command)?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                let why = error.to_string();
                let command = command.to_owned();
                return Err(Error::Monitor { command, why });
            }
            // All else is an event.
        }
    }

    /// Asks L1 to let a device go, as whoever presses the button at its slot does.
    pub fn unplug(&mut self, device: &str) -> Result<(), Error> {
        self.execute("device_del", &json!({ "id": device })).map(drop)
    }

    /// Has a device tell of an uncorrectable error that is not fatal: nothing came back (PCIe 6.2.7, completion
    /// timeout).
    pub fn fail(&mut self, device: &str) -> Result<(), Error> {
        let line = format!("pcie_aer_inject_error {device} COMP_TIME");
        let said = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        match said.as_str() {
            Some(said) if said.starts_with("OK") => Ok(()),
            _ => Err(Error::Monitor { command: line, why: said.to_string() }),
        }
    }

    /// Waits until L1 has let a device go that it was asked for. (The event `DEVICE_DELETED` waits for QEMU's own
    /// users of the device too, now and then for ever.)
    pub fn unplugged(&mut self, device: &str) -> Result<(), Error> {
        let begin = Instant::now();
        while self.has(device)? {
            if begin.elapsed() > PATIENCE {
                return Err(Error::Monitor {
                    command: "device_del".into(),
                    why: format!("L1 does not let go of {device}"),
                });
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn has(&mut self, device: &str) -> Result<bool, Error> {
        let buses = self.execute("query-pci", &json!({}))?.to_string();
        Ok(buses.contains(&json!({ "qdev_id": device }).to_string().replace(['{', '}'], "")))
    }

    fn message(&mut self, what: &str) -> Result<Value, Error> {
        let failed =
            |error: IoError| Error::Monitor { command: what.to_owned(), why: error.to_string() };
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(failed(ErrorKind::UnexpectedEof.into())),
            Ok(_) => serde_json::from_str(&line).map_err(Error::json("the monitor's message")),
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A monitor that answers each line with the next of `answers`.
    fn monitor(answers: &[&'static str]) -> Result<Monitor, Error> {
        let answers = [&["{\"return\":{}}"], answers].concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{}}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
        });
        Monitor::connect(&path)
    }

    #[test]
    fn a_device_is_unplugged_when_it_is_on_no_bus() {
        let event = "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"d0\"}}\n{\"return\":{}}";
        let there =
            "{\"return\":[{\"devices\":[{\"pci_bridge\":{\"devices\":[{\"qdev_id\":\"d0\"}]}}]}]}";
        let gone =
            "{\"return\":[{\"devices\":[{\"pci_bridge\":{\"devices\":[{\"qdev_id\":\"d01\"}]}}]}]}";
        let mut monitor = monitor(&[event, there, gone]).unwrap();
        monitor.unplug("d0").unwrap();
        monitor.unplugged("d0").unwrap();
        // Nothing is left to answer it.
        assert!(monitor.unplugged("d01").is_err());
    }

    #[test]
    fn what_it_refuses_is_told_with_the_command() {
        let mut monitor = monitor(&["{\"error\":{\"desc\":\"Device 'd1' not found\"}}"]).unwrap();
        let text = monitor.unplug("d1").unwrap_err().to_string();
        assert!(text.contains("device_del") && text.contains("'d1' not found"), "{text}");
    }

    #[test]
    fn an_error_that_cannot_be_had_is_told() {
        let mut monitor =
            monitor(&["{\"return\":\"OK id: d0\"}", "{\"return\":\"no device\"}"]).unwrap();
        monitor.fail("d0").unwrap();
        let text = monitor.fail("d1").unwrap_err().to_string();
        assert!(text.contains("no device"), "{text}");
    }

    #[test]
    fn a_monitor_that_ends_is_an_error() {
        assert!(monitor(&[]).unwrap().unplug("device0").is_err());
    }
}
