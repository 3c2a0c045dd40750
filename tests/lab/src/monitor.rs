//! QEMU's monitor (QMP). It changes L1's hardware while L1 runs.

use std::io::{BufRead as _, BufReader, Error as IoError, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;
use crate::watchdog::SILENCE_LIMIT;

/// A connection to the monitor.
pub struct Monitor {
    lines: BufReader<UnixStream>,
    /// The names of the events so far.
    events: Vec<String>,
}

impl Monitor {
    /// Connects to the monitor at `path` and negotiates its capabilities.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(Error::file("connect to", path))?;
        stream
            .set_read_timeout(Some(SILENCE_LIMIT))
            .map_err(Error::file("set a time-out of", path))?;
        let mut monitor = Self { lines: BufReader::new(stream), events: Vec::new() };
        // The monitor sends a greeting, and rejects other commands before this one.
        monitor.message("greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a QMP command and returns its result.
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
            let event = message.get("event").and_then(Value::as_str);
            self.events.extend(event.map(str::to_owned));
        }
    }

    /// Whether there was an event of this name.
    pub fn has_seen(&mut self, event: &str) -> Result<bool, Error> {
        // Events come before the answer to a later command.
        self.execute("query-status", &json!({}))?;
        Ok(self.events.iter().any(|own| own == event))
    }

    /// Asks L1 to release a device, as a press of the button at its slot does.
    pub fn unplug(&mut self, device: &str) -> Result<(), Error> {
        self.execute("device_del", &json!({ "id": device })).map(drop)
    }

    /// Makes a device report a non-fatal uncorrectable error: a completion timeout (PCIe 6.0,
    /// 6.2.7).
    pub fn inject_error(&mut self, device: &str) -> Result<(), Error> {
        let line = format!("pcie_aer_inject_error {device} COMP_TIME");
        let answer = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        match answer.as_str() {
            Some(text) if text.starts_with("OK") => Ok(()),
            _ => Err(Error::Monitor { command: line, why: answer.to_string() }),
        }
    }

    /// Waits until a device that L1 was asked to release is gone from its bus. The event
    /// `DEVICE_DELETED` is no use: it also waits for QEMU's own users of the device, sometimes for
    /// ever.
    pub fn wait_unplugged(&mut self, device: &str) -> Result<(), Error> {
        let begin = Instant::now();
        while self.has(device)? {
            if begin.elapsed() > SILENCE_LIMIT {
                return Err(Error::Monitor {
                    command: "device_del".into(),
                    why: format!("L1 does not release {device}"),
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

    /// Connects to a fake monitor that answers each line with the next of `answers`.
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
    fn waits_until_a_device_is_on_no_bus() {
        let event = "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"d0\"}}\n{\"return\":{}}";
        let there =
            "{\"return\":[{\"devices\":[{\"pci_bridge\":{\"devices\":[{\"qdev_id\":\"d0\"}]}}]}]}";
        let gone =
            "{\"return\":[{\"devices\":[{\"pci_bridge\":{\"devices\":[{\"qdev_id\":\"d01\"}]}}]}]}";
        let mut monitor = monitor(&[event, there, gone]).unwrap();
        monitor.unplug("d0").unwrap();
        monitor.wait_unplugged("d0").unwrap();
        // The fake monitor has no more answers.
        assert!(monitor.wait_unplugged("d01").is_err());
    }

    #[test]
    fn error_has_the_command_and_the_monitors_text() {
        let mut monitor = monitor(&["{\"error\":{\"desc\":\"Device 'd1' not found\"}}"]).unwrap();
        let text = monitor.unplug("d1").unwrap_err().to_string();
        assert!(text.contains("device_del") && text.contains("'d1' not found"), "{text}");
    }

    #[test]
    fn reports_a_failed_error_injection() {
        let mut monitor =
            monitor(&["{\"return\":\"OK id: d0\"}", "{\"return\":\"no device\"}"]).unwrap();
        monitor.inject_error("d0").unwrap();
        let text = monitor.inject_error("d1").unwrap_err().to_string();
        assert!(text.contains("no device"), "{text}");
    }

    #[test]
    fn reports_a_closed_connection() {
        assert!(monitor(&[]).unwrap().unplug("device0").is_err());
    }
}
