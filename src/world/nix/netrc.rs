//! The `netrc` format: `machine HOST login NAME password PASSWORD`, words separated by white space.

use secrecy::SecretString;

/// What one machine is told.
pub(super) struct Machine {
    pub(super) host: String,
    pub(super) login: String,
    pub(super) password: SecretString,
}

/// The machines of a netrc, or what is wrong with it (never quoting it).
pub(super) fn parse(text: &str) -> Result<Vec<Machine>, String> {
    let mut words = words(text)?.into_iter();
    let mut machines: Vec<Machine> = Vec::new();
    let mut open: Option<(String, Option<String>, Option<String>)> = None;
    while let Some(word) = words.next() {
        match (word.as_str(), &mut open) {
            ("machine", _) => {
                machines.extend(open.take().map(close).transpose()?);
                let host = words.next().ok_or("ends behind `machine`; a host must follow")?.to_ascii_lowercase();
                if host.is_empty() || host.starts_with(['-', '.']) || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
                {
                    return Err("has a machine that is no host name; write the name alone, without scheme and port".into());
                }
                open = Some((host, None, None));
            }
            ("default", _) => return Err("has a `default` entry, which would send its password to any host; name each machine".into()),
            ("macdef", _) => return Err("has a `macdef`, which is not supported; leave it out".into()),
            ("login", Some((_, login, _))) => *login = Some(words.next().ok_or("ends behind `login`; a name must follow")?),
            ("password", Some((_, _, password))) => *password = Some(words.next().ok_or("ends behind `password`; it must follow")?),
            ("account", Some(_)) => drop(words.next()),
            _ => {
                return Err(
                    "has a word where `machine`, `login` or `password` must stand; write `machine HOST login NAME password PASSWORD`"
                        .into(),
                );
            }
        }
    }
    machines.extend(open.take().map(close).transpose()?);
    if machines.is_empty() {
        return Err("is empty; write `machine HOST login NAME password PASSWORD`".into());
    }
    Ok(machines)
}

/// A machine that is complete.
fn close((host, login, password): (String, Option<String>, Option<String>)) -> Result<Machine, String> {
    match (login, password) {
        (Some(login), Some(password)) if !login.contains(':') => Ok(Machine { host, login, password: password.into() }),
        (Some(_), Some(_)) => Err(format!("has a login with a colon for the machine {host}, which HTTP cannot carry")),
        _ => Err(format!("has no login or no password for the machine {host}")),
    }
}

/// The words; quoted ones as curl reads them, comments left out.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut characters = line.chars().peekable();
        while let Some(&first) = characters.peek() {
            if first.is_whitespace() {
                characters.next();
            } else if first == '"' {
                characters.next();
                words.push(quoted(&mut characters)?);
            } else {
                words.push(std::iter::from_fn(|| characters.next_if(|c| !c.is_whitespace())).collect());
            }
        }
    }
    let printable = |word: &String| !word.chars().any(char::is_control);
    if words.iter().all(printable) { Ok(words) } else { Err("has a control character".into()) }
}

fn quoted(characters: &mut impl Iterator<Item = char>) -> Result<String, String> {
    let mut word = String::new();
    loop {
        match characters.next() {
            Some('"') => return Ok(word),
            Some('\\') => word.extend(characters.next()),
            Some(character) => word.push(character),
            None => return Err("has a quotation mark that is not closed on its line".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    fn good(text: &str) -> Vec<(String, String, String)> {
        let machines = parse(text).unwrap_or_else(|problem| panic!("{text:?} {problem}"));
        machines.into_iter().map(|m| (m.host, m.login, m.password.expose_secret().to_owned())).collect()
    }

    #[test]
    fn machines_are_read_however_they_are_laid_out() {
        let one = |host: &str, password: &str| (host.to_owned(), "bot".to_owned(), password.to_owned());
        assert_eq!(good("machine h login bot password p"), [one("h", "p")]);
        assert_eq!(
            good("# mine\nmachine H\n\tlogin bot\n\taccount x\n\tpassword p\nmachine i password \"a \\\"b\" login bot\n"),
            [one("h", "p"), one("i", "a \"b")]
        );
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (text, problem) in [
            ("", "is empty"),
            ("hunter2", "where `machine`"),
            ("login bot", "where `machine`"),
            ("machine", "a host must follow"),
            ("machine https://h login a password hunter2", "without scheme"),
            ("machine h login a", "no password for the machine h"),
            ("machine h login a:b password hunter2", "colon"),
            ("default login a password hunter2", "any host"),
            ("machine h login a password \"hunter2", "not closed"),
            ("machine h login a password hunter2 macdef x", "macdef"),
        ] {
            let Err(found) = parse(text) else { panic!("{text:?} was taken") };
            assert!(found.contains(problem) && !found.contains("hunter2"), "{text:?}: {found}");
        }
    }
}
