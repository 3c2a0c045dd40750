//! The VMM's log: a VMM that boots and ends as it was asked to logs nothing, unless a test expects
//! it.

/// The messages on a VMM's standard error. A message of several lines continues with a space.
fn messages(stderr: &str) -> impl Iterator<Item = &str> {
    stderr.lines().filter(|line| !line.is_empty() && !line.starts_with(char::is_whitespace))
}

/// The one message about peer-to-peer DMA that a guest with several devices logs by iommufd: its
/// kernel has no dma-bufs of BARs.
pub(crate) const NO_PEERS: &str = "for the DMA of other devices: cannot map";

/// What is wrong with a log: messages that contain neither a text in `expected` nor `allowed`, and
/// texts in `expected` that no message contains. `None` if nothing is.
pub(crate) fn surprise(stderr: &str, expected: &[String], allowed: Option<&str>) -> Option<String> {
    let texts = || expected.iter().map(String::as_str).chain(allowed);
    let is_expected = |line: &&str| texts().any(|text| line.contains(text));
    let extra = messages(stderr).filter(|line| !is_expected(line));
    let extra = extra.map(|line| format!("the VMM logged: {line}"));
    let missing = expected.iter().filter(|text| !stderr.contains(text.as_str()));
    let missing = missing.map(|text| format!("the VMM did not log: {text}"));
    let all: Vec<String> = extra.chain(missing).collect();
    (!all.is_empty()).then(|| all.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_each_message_that_was_not_expected_and_each_that_is_missing() {
        let log = "[WARN  vmm] a device was detached\n  a remedy\n[ERROR vmm] no\n";
        let expected = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let found = |texts: &[&str]| -> Option<String> {
            let texts: Vec<String> = expected(texts);
            surprise(log, &texts, None)
        };
        assert_eq!(found(&["detached", "ERROR"]), None);
        assert_eq!(found(&["detached"]).unwrap(), "the VMM logged: [ERROR vmm] no");
        assert_eq!(found(&["detached", "no", "x"]).unwrap(), "the VMM did not log: x");
        assert_eq!(surprise("", &[], Some("no")), None);
        assert_eq!(surprise("no\n", &[], Some("no")), None);
    }
}
