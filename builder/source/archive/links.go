package archive

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// Finish makes the symbolic links, none of which leads out, and sets the times of
// folders.
func (t *Tree) Finish() error {
	names := slices.Sorted(maps.Keys(t.nodes))
	for _, name := range names {
		if t.nodes[name].target == "" {
			continue
		}
		if err := t.canceled(); err != nil {
			return err
		}
		if err := t.follow(name); err != nil {
			return err
		}
	}
	if t.root == nil {
		return nil
	}
	for _, name := range names {
		if target := t.nodes[name].target; target != "" {
			if err := t.root.Symlink(target, name); err != nil {
				return writing(err)
			}
		}
	}
	for _, name := range slices.Backward(names) {
		if n := t.nodes[name]; n.folder {
			at := t.timeOf(n.time)
			if err := t.root.Chtimes(name, at, at); err != nil {
				return writing(err)
			}
		}
	}
	return nil
}

// maxLinks is how many links Linux follows on one way.
const maxLinks = 40

// follow goes the way of a link, through all other links, and reports where it leaves
// the tree. A name that does not exist is taken for a folder.
func (t *Tree) follow(name string) error {
	var at []string
	ahead := strings.Split(name, "/")
	for links := 0; len(ahead) > 0; {
		part := ahead[0]
		ahead = ahead[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				return invalid("the link %s in the source leads out of it", shown(name))
			}
			at = at[:len(at)-1]
			continue
		}
		target := t.nodes[path.Join(path.Join(at...), part)].target
		if target == "" {
			at = append(at, part)
			continue
		}
		if links++; links > maxLinks {
			return invalid("the link %s in the source leads through more than %d links", shown(name), maxLinks)
		}
		ahead = append(strings.Split(target, "/"), ahead...)
	}
	return nil
}
