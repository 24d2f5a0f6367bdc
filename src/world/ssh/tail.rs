//! The end of a text of any length: where programs say why they failed.

/// Keeps the last bytes of what is pushed, never more than twice its limit in memory.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    cut: bool,
}

impl Tail {
    /// Empty; keeps `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, cut: false }
    }

    /// Appends `more`, and lets go of what is too far from the end.
    pub(crate) fn push(&mut self, more: &[u8]) {
        let more = &more[more.len().saturating_sub(self.limit)..];
        self.bytes.extend_from_slice(more);
        if self.bytes.len() > 2 * self.limit {
            self.shorten();
        }
    }

    /// What is kept, as text, without white space at its end; starts with `…` if something was let go.
    pub(crate) fn into_text(mut self) -> String {
        if self.bytes.len() > self.limit {
            self.shorten();
        }
        let text = String::from_utf8_lossy(&self.bytes);
        format!("{}{}", if self.cut { "…" } else { "" }, text.trim_end())
    }

    fn shorten(&mut self) {
        self.bytes.drain(..self.bytes.len() - self.limit);
        self.cut = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_kept_whole() {
        let mut tail = Tail::new(8);
        tail.push(b"abc");
        tail.push(b"def\n");
        assert_eq!(tail.into_text(), "abcdef");
    }

    #[test]
    fn a_long_text_keeps_its_end_in_bounded_memory() {
        let mut tail = Tail::new(4);
        for n in 0..1000 {
            tail.push(format!("{n:04}").as_bytes());
            assert!(tail.bytes.len() <= 8);
        }
        assert_eq!(tail.into_text(), "…0999");
    }
}
