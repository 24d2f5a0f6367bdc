# Functions of nixpkgs' lib, by its names and with its results.
let
  inherit (builtins)
    attrNames
    attrValues
    concatStringsSep
    fromJSON
    isBool
    foldl'
    isString
    map
    readFile
    toJSON
    ;
  lib = rec {
    inherit attrValues isBool;
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    mapAttrsToList = f: attrs: map (name: f name attrs.${name}) (attrNames attrs);
    concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    boolToString = value: if value then "true" else "false";
    importTOML = path: builtins.fromTOML (readFile path);
    importJSON = path: fromJSON (readFile path);
    makeBinPath = concatMapStringsSep ":" (package: "${package}/bin");
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    licenses.asl20.spdxId = "Apache-2.0";
    platforms.linux = [ "x86_64-linux" "aarch64-linux" ];
    generators.toPretty = { }: value: "builtins.fromJSON ${toJSON (toJSON value)}";
    fileset = {
      unions = map (path: if builtins.pathExists path then path else throw "fileset: ${toString path} does not exist");
      # Not a source, but what it would be made of
      toSource = { root, fileset }: builtins.toFile "source" (toJSON (map (path: lib.removePrefix "${toString root}/" (toString path)) fileset));
    };
    reverse = foldl' (done: one: [ one ] ++ done) [ ];
    unique = foldl' (done: one: if builtins.elem one done then done else done ++ [ one ]) [ ];
    splitDots = text: builtins.filter isString (builtins.split "\\." text);
    recursiveUpdate =
      left: right:
      if builtins.isAttrs left && builtins.isAttrs right && !left ? _option then
        left // builtins.mapAttrs (name: value: if left ? ${name} then recursiveUpdate left.${name} value else value) right
      else
        right;
    removePrefix =
      prefix: text:
      if hasPrefix prefix text then builtins.substring (builtins.stringLength prefix) (builtins.stringLength text) text else text;

    mkOption = attrs@{ type, description, default ? null, example ? null }: attrs // { _type = "option"; };
    mkEnableOption = about: mkOption { type = types.bool; default = false; description = "Whether to enable ${about}."; };
    mkPackageOption =
      pkgs: name: { }:
      mkOption { type = types.package; default = pkgs.${name}; description = "The ${name} package to use."; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };
    mkOverride = priority: content: { _type = "override"; inherit priority content; };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;

    types = import ./types.nix;
    nixos = import ./modules.nix lib;
  };
in
lib
