{
  description = "A fleet shaped like NixOS, that needs neither inputs nor a network";

  # An input, where a test adds one, is a tree with a file `text`, which then is part of every system.
  outputs =
    { self, ... }@inputs:
    let
      fleet = builtins.fromJSON (builtins.readFile ./fleet.json);
      inputText = builtins.concatStringsSep "" (
        map (input: builtins.readFile "${input}/text") (builtins.attrValues (removeAttrs inputs [ "self" ]))
      );
      nixosSystem = import ./system.nix {
        inherit inputText;
        inherit (fleet) salt;
        busyboxFile = "${./tools}/busybox";
      };
    in
    {
      nixosConfigurations = builtins.mapAttrs (name: knobs: nixosSystem (fleet.defaults // knobs // { inherit name; })) fleet.hosts;
    };
}
