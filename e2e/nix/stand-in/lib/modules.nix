# An evaluator of modules, with the options of NixOS that options.json lists. What it is for is to refuse: an option that does not exist, a value of another
# type, two values where there can be one, a value that is asked for and that nobody gave.
lib:
{ modules, pkgs }:
let
  inherit (builtins)
    attrNames
    catAttrs
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    isAttrs
    isFunction
    mapAttrs
    removeAttrs
    ;

  arguments = {
    inherit config lib pkgs;
    modulesPath = toString ../nixos/modules;
    utils = import ../nixos/lib/utils.nix lib;
  };
  # One module and those that it imports, each as { options, config }
  load =
    module:
    let
      value = if isFunction module || isAttrs module then module else import module;
      called =
        if isFunction value then
          value (
            mapAttrs (name: _: arguments.${name} or (throw "a module wants the argument ${name}, which NixOS does not give")) (
              builtins.functionArgs value
            )
          )
        else
          value;
      short = removeAttrs called [ "imports" ];
      long = called ? config || called ? options;
      unknown = filter (name: !elem name [ "imports" "options" "config" ]) (attrNames called);
    in
    if long && unknown != [ ] then
      throw "a module has ${concatStringsSep ", " unknown} beside config and options"
    else
      [ (if long then { options = called.options or { }; config = called.config or { }; } else { options = { }; config = short; }) ]
      ++ concatMap load (called.imports or [ ]);
  loaded = concatMap load ([ { nix.package = lib.mkDefault pkgs.nix; } ] ++ modules);

  # ---- the options there are, as a tree whose leaves have `_option`; `<name>` stands for any ----

  declared =
    options: mapAttrs (_: value: if value._type or "" == "option" then { _option = value; } else declared value) options;
  real = foldl' lib.recursiveUpdate { } (
    lib.mapAttrsToList (
      name: about:
      let
        option = { type = lib.types.named about.type; } // removeAttrs about [ "type" ];
      in
      foldl' (inner: part: { ${part} = inner; }) { _option = option; } (lib.reverse (lib.splitDots name))
    ) (lib.importJSON ../options.json)
  );
  tree = foldl' lib.recursiveUpdate real (map (module: declared module.options) loaded);

  # ---- what the definitions make of them ----

  # The plain values that hold, each with its priority
  discharge =
    priority: value:
    if value._type or "" == "if" then
      (if value.condition then discharge priority value.content else [ ])
    else if value._type or "" == "merge" then
      concatMap (discharge priority) value.contents
    else if value._type or "" == "override" then
      discharge value.priority value.content
    else
      [ { inherit priority value; } ];

  # An attribute set whose conditions are at its values, so that its names can be known without them
  push =
    value:
    let
      inward = wrap: map (mapAttrs (_: wrap)) (push value.content);
    in
    if value._type or "" == "if" then
      inward (lib.mkIf value.condition)
    else if value._type or "" == "merge" then
      concatMap push value.contents
    else if value._type or "" == "override" then
      inward (lib.mkOverride value.priority)
    else
      [ value ];

  leaf =
    where: option: definitions:
    let
      values = concatMap (discharge 100) definitions;
      best = foldl' (least: one: if one.priority < least then one.priority else least) 10000 values;
      chosen = catAttrs "value" (filter (one: one.priority == best) values);
      check =
        value: if option.type.check value then value else throw "A definition for option `${where}' is not of type `${option.type.name}'.";
    in
    if values != [ ] then
      option.type.merge where (map check chosen)
    else
      option.default or (throw "The option `${where}' was accessed but has no value defined.");

  node =
    path: options: definitions:
    let
      where = concatStringsSep "." path;
      sets = concatMap push definitions;
      unknown = filter (name: !options ? ${name}) (concatMap attrNames sets);
      any = options."<name>" or null;
      inside = name: child: node (path ++ [ name ]) child (catAttrs name sets);
      # A name that only a condition which does not hold would give is none
      held = filter (name: concatMap (discharge 100) (catAttrs name sets) != [ ]) unknown;
    in
    if options ? _option then
      leaf where options._option definitions
    else if unknown != [ ] && any == null then
      throw "The option `${concatStringsSep "." (path ++ [ (builtins.head unknown) ])}' does not exist."
    else
      mapAttrs inside (removeAttrs options [ "<name>" ]) // lib.genAttrs held (name: inside name any);

  config = node [ ] tree (catAttrs "config" loaded);

  # Only what somebody defined: the rest may have no value
  defined =
    options: definitions: value:
    let
      sets = concatMap push definitions;
      given = filter (name: concatMap (discharge 100) (catAttrs name sets) != [ ]) (lib.unique (concatMap attrNames sets));
      child = name: options.${name} or options."<name>";
    in
    # The value first: it is what refuses a name that does not exist
    if options ? _option then value else builtins.seq value lib.genAttrs given (name: defined (child name) (catAttrs name sets) value.${name});
in
{
  inherit config;
  # For a test to read: every definition, checked
  defined = builtins.deepSeq config.assertions (defined tree (catAttrs "config" loaded) config);
  failed = map (one: one.message) (filter (one: !one.assertion) config.assertions);
}
