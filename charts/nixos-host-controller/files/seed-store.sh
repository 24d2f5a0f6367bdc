# Puts what the image has in /nix/store onto the volume $1 that is mounted over it afterwards. Nothing else uses the volume meanwhile.
# An image whose programs are elsewhere needs none of it. One that was made with Nix has /nix-path-registration (closureInfo's), or what $2 says.
set -eu
volume=$1
registration=${2:-/nix-path-registration}
store=$volume/nix/store
roots=$volume/nix/var/nix/gcroots/image
mkdir -p "$store" "$roots" "$volume/data"
for path in "$store"/.seed-*; do # an earlier run was interrupted
  [ -e "$path" ] || [ -L "$path" ] || continue
  chmod -R u+w "$path"
  rm -rf "$path"
done
for path in /nix/store/*-*; do
  [ -e "$path" ] || [ -L "$path" ] || continue
  name=${path##*/}
  if [ ! -e "$store/$name" ] && [ ! -L "$store/$name" ]; then
    cp -RPp "$path" "$store/.seed-$name"
    mv "$store/.seed-$name" "$store/$name"
    echo "copied $path"
  fi
done
if [ -e "$registration" ]; then
  # Nix wants a home that is the user's own
  HOME=$volume/data nix-store --store "local?root=$volume" --load-db < "$registration"
fi
# The image's predecessor is garbage from here on
rm -rf "$roots"
mkdir "$roots"
for path in /nix/store/*-*; do
  [ -e "$path" ] || [ -L "$path" ] || continue
  ln -s "$path" "$roots/${path##*/}"
done
