# Types of options: which values they have, and what several definitions make.
let
  inherit (builtins)
    all
    any
    concatLists
    head
    isAttrs
    isBool
    isInt
    isList
    isString
    match
    ;
  type = name: check: { inherit name check; merge = one; };
  one = where: values: if all (value: value == head values) values then head values else throw "The option `${where}' has conflicting definitions.";
  joined = _: builtins.foldl' (all: one: all // one) { };
in
rec {
  bool = type "boolean" isBool;
  int = type "integer" isInt;
  str = type "string" isString;
  singleLineStr = type "string of one line" (value: isString value && match ".*\n.*" value == null);
  package = type "package" (value: isAttrs value && value.type or "" == "derivation");
  path = type "path" (value: package.check value || isString value && match "/.*" value != null);
  anything = type "anything" (_: true);
  attrs = type "attribute set" isAttrs // { merge = joined; };
  listOf = item: type "list of ${item.name}" (value: isList value && all item.check value) // { merge = _: concatLists; };
  attrsOf =
    item: type "attribute set of ${item.name}" (value: isAttrs value && all item.check (builtins.attrValues value)) // { merge = joined; };
  oneOf = types: type "one of several" (value: any (type: type.check value) types);
  nullOr = item: type "null or ${item.name}" (value: value == null || item.check value) // { inherit (item) merge; };

  # As options.json writes them
  named =
    name:
    let
      list = match "list of (.*)" name;
      maybe = match "null or (.*)" name;
      plain = { inherit bool int str package path anything attrs; };
    in
    if list != null then
      listOf (named (head list))
    else if maybe != null then
      nullOr (named (head maybe))
    else
      plain.${name} or (throw "options.json: there is no type ${name}");
}
