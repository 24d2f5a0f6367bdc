# Packages and functions of nixpkgs. Each takes the arguments that nixpkgs' takes, and no others; what it gives is a derivation, never built.
{ lib, system }:
let
  make = name: more: derivation { inherit name system; builder = "/bin/sh"; } // more;
  # What was asked for, in the derivation, so that it depends on all of it and a test can read it
  asked = name: arguments: derivation { inherit name system; builder = "/bin/sh"; asked = builtins.toJSON arguments; } // { inherit arguments; };
  package = name: make "${name}-0" { pname = name; version = "0"; meta.mainProgram = name; };
  names = [
    "bash"
    "cacert"
    "clippy"
    "coreutils"
    "git"
    "gitMinimal"
    "gnupg"
    "kubectl"
    "makeWrapper"
    "nix"
    "nixfmt-tree"
    "openssh"
    "rust-analyzer"
    "rustfmt"
    "shellcheck"
  ];
  pkgs = lib.genAttrs names package // {
    inherit lib pkgs;
    stdenv.hostPlatform = { inherit system; };
    callPackage =
      path: overrides:
      let
        f = import path;
      in
      f (builtins.intersectAttrs (builtins.functionArgs f) pkgs // overrides);

    rustPlatform.buildRustPackage =
      { pname, version, src, cargoLock, cargoBuildFlags, doCheck, nativeBuildInputs, postInstall, meta }@arguments:
      assert cargoLock ? lockFile;
      asked "${pname}-${version}" (removeAttrs arguments [ "meta" ]) // { inherit pname version meta; };
    mkShell = { inputsFrom, packages }@arguments: asked "nix-shell" arguments;
    writeText = name: text: asked name { inherit text; };
    writeTextDir = path: text: asked (baseNameOf path) { inherit path text; };
    linkFarm = name: entries: asked name entries;
    closureInfo = { rootPaths }@arguments: asked "closure-info" arguments;
    dockerTools.streamLayeredImage =
      {
        name,
        tag,
        uid,
        gid,
        uname,
        gname,
        contents,
        extraCommands,
        fakeRootCommands,
        config,
      }@arguments:
      asked "stream-${name}" arguments;
    testers.runNixOSTest =
      { name, nodes, testScript }:
      asked "vm-test-run-${name}" {
        inherit testScript;
        nodes = builtins.mapAttrs (
          _: node:
          let
            machine = lib.nixos { inherit pkgs; modules = [ node ]; };
          in
          if machine.failed == [ ] then machine.defined else throw (builtins.head machine.failed)
        ) nodes;
      };
  };
in
pkgs
