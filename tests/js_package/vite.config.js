import { defineConfig } from "vite";

export default defineConfig({
  build: {
    lib: { entry: { app: "src/app.js", strict: "src/strict.js" }, formats: ["es"] },
    minify: "esbuild",
    // React stays outside, so that Node takes its development build: only that mounts twice in strict mode.
    rollupOptions: { external: ["react"] },
  },
});
