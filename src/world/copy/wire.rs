//! How Nix writes numbers and texts: 64 bits little endian; bytes with their length before them and zeros behind, to a
//! multiple of 8; lists with their length before them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// What follows `length` bytes, to make them a multiple of 8.
pub(super) fn padding(length: u64) -> &'static [u8] {
    const ZEROS: [u8; 7] = [0; 7];
    match length % 8 {
        0 => &[],
        1 => &ZEROS,
        2 => &ZEROS[1..],
        3 => &ZEROS[2..],
        4 => &ZEROS[3..],
        5 => &ZEROS[4..],
        6 => &ZEROS[5..],
        _ => &ZEROS[6..],
    }
}

/// Appends a number.
pub(super) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Appends a text, or any bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    let length = bytes.len() as u64;
    put_number(out, length);
    out.extend_from_slice(bytes);
    out.extend_from_slice(padding(length));
}

/// Appends a list of texts.
pub(super) fn put_list<T: AsRef<[u8]>>(out: &mut Vec<u8>, items: impl ExactSizeIterator<Item = T>) {
    put_number(out, items.len() as u64);
    for item in items {
        put_bytes(out, item);
    }
}

fn nonsense(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a number.
pub(super) async fn number(from: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
    from.read_u64_le().await
}

/// Reads a number of things, `most` at most.
pub(super) async fn count(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<usize> {
    let number = number(from).await?;
    usize::try_from(number).ok().filter(|count| *count <= most).ok_or_else(|| nonsense(format!("{number} where {most} is the most")))
}

/// Reads a text of `most` bytes at most.
pub(super) async fn text(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<String> {
    let length = count(from, most).await?;
    let mut bytes = vec![0; length.next_multiple_of(8)];
    from.read_exact(&mut bytes).await?;
    if bytes.split_off(length).iter().any(|byte| *byte != 0) {
        return Err(nonsense("padding that is not zeros".to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| nonsense("a text that is not UTF-8".to_owned()))
}

/// Reads a list of texts, `most` at most, each of `length` bytes at most.
pub(super) async fn list(from: &mut (impl AsyncRead + Unpin), most: usize, length: usize) -> io::Result<Vec<String>> {
    // Nothing is set aside for what is only announced.
    let mut items = Vec::new();
    for _ in 0..count(from, most).await? {
        items.push(text(from, length).await?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        futures::executor::block_on(future)
    }

    #[test]
    fn a_text_is_padded_to_eight_bytes() {
        let mut out = Vec::new();
        put_bytes(&mut out, "abc");
        assert_eq!(&out[..], b"\x03\0\0\0\0\0\0\0abc\0\0\0\0\0");
        put_bytes(&mut out, "12345678");
        assert_eq!(out.len(), 16 + 16);
    }

    proptest! {
        #[test]
        fn lists_are_read_back(items in prop::collection::vec(".{0,20}", 0..8)) {
            let mut out = Vec::new();
            put_list(&mut out, items.iter());
            prop_assert_eq!(out.len() % 8, 0);
            prop_assert_eq!(read(list(&mut &out[..], 8, 80)).unwrap(), items);
        }

        #[test]
        fn no_input_is_too_strange_to_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(list(&mut &bytes[..], 8, 80));
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        let mut out = Vec::new();
        put_number(&mut out, u64::MAX);
        assert_eq!(read(text(&mut &out[..], 100)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(list(&mut &out[..], 100, 100)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn padding_must_be_zeros() {
        let bytes = b"\x01\0\0\0\0\0\0\0a\0\0\0\0\0\0x";
        assert_eq!(read(text(&mut &bytes[..], 100)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
