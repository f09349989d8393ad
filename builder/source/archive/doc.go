// Package archive packs local folders for upload, and writes what comes from outside,
// archives first of all, into a folder of the build context. Everything that comes in
// is taken for hostile; see Tree for what may become of it.
package archive
