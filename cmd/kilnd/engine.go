package main

// wrapEngine, if set, puts something before a worker's engine. It is for programs that
// tests build with tags of their own.
var wrapEngine func(engine) (engine, error)
