//! Names as they travel on the wire.

/// Checks the name of a disk or virtual machine: 1 to 64 letters, digits, `.`, `_` or `-`, not
/// beginning with a dot. The error is a sentence that names `what`.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 {
        return Err(format!(
            "the {what} name {name:?} must have 1 to 64 characters"
        ));
    }
    if name.starts_with('.') || !name.chars().all(plain) {
        return Err(format!(
            "the {what} name {name:?} may have only letters, digits, '.', '_' and '-', \
             and not begin with a dot"
        ));
    }
    Ok(())
}
