//! Bytes into lines, with a bound on each line and on what is remembered.

use std::collections::VecDeque;

/// Longest line that is looked at, in bytes; of a longer one only [`DROPPED`] is told. An evaluation error with its trace is one
/// line of Nix's JSON log, and was seen to have 91 kB.
pub const LINE_LIMIT: usize = 1 << 20;

/// What stands for a line that was too long.
pub const DROPPED: &str = "(a line longer than 1 MiB)";

/// Bytes of the last lines that are remembered.
const TAIL_LIMIT: usize = 64 << 10;

/// Takes bytes as they come, gives lines as they are complete.
#[derive(Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The line that is coming in is too long already.
    dropping: bool,
    tail: VecDeque<String>,
    tail_bytes: usize,
}

impl Lines {
    /// Takes the next bytes; empty lines are skipped.
    pub(super) fn push(&mut self, mut bytes: &[u8], on_line: &mut impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            self.extend(&bytes[..end]);
            self.finish(on_line);
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    /// Ends the line that has begun.
    pub(super) fn finish(&mut self, on_line: &mut impl FnMut(&str)) {
        let partial = std::mem::take(&mut self.partial);
        let dropped = std::mem::take(&mut self.dropping);
        if dropped || !partial.is_empty() {
            let line = if dropped { DROPPED.to_owned() } else { String::from_utf8_lossy(&partial).into_owned() };
            on_line(&line);
            self.remember(line);
        }
    }

    /// The last lines.
    pub(super) fn into_tail(self) -> Vec<String> {
        self.tail.into()
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.dropping || self.partial.len() + bytes.len() > LINE_LIMIT {
            self.dropping = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn remember(&mut self, line: String) {
        self.tail_bytes += line.len();
        self.tail.push_back(line);
        while self.tail_bytes > TAIL_LIMIT
            && let Some(oldest) = self.tail.pop_front()
        {
            self.tail_bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> (Vec<String>, Vec<String>) {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        let mut on_line = |line: &str| seen.push(line.to_owned());
        for chunk in chunks {
            lines.push(chunk, &mut on_line);
        }
        lines.finish(&mut on_line);
        (seen, lines.into_tail())
    }

    #[test]
    fn lines_end_at_newlines_and_carriage_returns_wherever_the_chunks_are_cut() {
        let (seen, tail) = split(&[b"on", b"e\ntwo\rth", b"ree\r\n\nfour"]);
        assert_eq!(seen, ["one", "two", "three", "four"]);
        assert_eq!(tail, seen);
    }

    #[test]
    fn an_endless_line_is_told_of_and_the_next_one_read() {
        let chunk = vec![b'x'; 300 << 10];
        let (seen, _) = split(&[&chunk, &chunk, &chunk, &chunk, b"x\nnext\n"]);
        assert_eq!(seen, [DROPPED, "next"]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let line = format!("{}\n", "y".repeat(999));
        let (seen, tail) = split(&vec![line.as_bytes(); 200]);
        assert_eq!(seen.len(), 200);
        assert_eq!(tail.len(), 65);
    }

    #[test]
    fn what_is_no_utf_8_is_shown_as_such() {
        assert_eq!(split(&[b"a\xffb\n"]).0, ["a\u{fffd}b"]);
    }
}
