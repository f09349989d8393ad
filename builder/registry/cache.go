package registry

import (
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/builder"
)

// maxResolved bounds the cache; it is emptied when it is full.
const maxResolved = 1000

// resolvedKey is what a digest was asked for.
type resolvedKey struct {
	repository string
	digest     v1.Hash
	platform   string
}

// cache remembers what digests stand for, which never changes. The zero value is
// empty. Safe for concurrent use.
type cache struct {
	mu     sync.Mutex
	images map[resolvedKey]builder.Image
}

func (c *cache) get(key resolvedKey) (builder.Image, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	image, ok := c.images[key]
	return image, ok
}

func (c *cache) put(key resolvedKey, image builder.Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.images == nil || len(c.images) >= maxResolved {
		c.images = make(map[resolvedKey]builder.Image)
	}
	c.images[key] = image
}
