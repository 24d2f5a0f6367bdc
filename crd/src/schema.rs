//! What the generated schema is mended of.

use schemars::{Schema, transform::transform_subschemas};
use serde_json::Value;

/// Keeps the text of an optional field: the type that it may have has a text of its own, which would take the place of the field's where the
/// two schemas are made one, and be what `kubectl explain` prints.
pub(crate) fn fields_speak_for_themselves(schema: &mut Schema) {
    transform_subschemas(&mut fields_speak_for_themselves, schema);
    let Some(object) = schema.as_object_mut().filter(|object| object.contains_key("description")) else { return };
    for alternative in object.get_mut("anyOf").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(alternative) = alternative.as_object_mut() {
            alternative.remove("description");
        }
    }
}
