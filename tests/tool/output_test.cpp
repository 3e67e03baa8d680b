#include "output.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "errors.h"
#include "text.h"

using namespace tightkv::tool;

TEST(Output, TheOldFileStaysUntilTheNewOneIsComplete) {
    const std::string path = testing::TempDir() + "/tightkv_output";
    std::ofstream(path) << "old";
    { const OutputFile unused(path); }
    EXPECT_EQ(read_text(path), "old");
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
    OutputFile out(path);
    EXPECT_EQ(read_text(path), "old");
    out.write("new");
    EXPECT_EQ(read_text(path), "new");
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
    std::remove(path.c_str());
}

TEST(Output, PiecesBecomeAFileWhenTheyAreFinished) {
    const std::string path = testing::TempDir() + "/tightkv_output_pieces";
    std::ofstream(path) << "old";
    {
        OutputFile given_up(path);
        given_up.append(std::string("half"));
    }
    EXPECT_EQ(read_text(path), "old");
    OutputFile out(path);
    for (const char* piece : {"a", "", "bc"}) out.append(std::string(piece));
    EXPECT_EQ(read_text(path), "old");
    out.finish();
    EXPECT_EQ(read_text(path), "abc");
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
    std::remove(path.c_str());
}

TEST(Output, UnwritablePlacesAreFailures) {
    for (const char* path : {"/nonexistent/folder/x.json", "/tmp", "/proc/version/x"}) try {
            const OutputFile out(path);
            FAIL() << path;
        } catch (const Failure& f) {
            EXPECT_EQ(f.exit_code, kExitFailure);
            EXPECT_NE(std::string(f.what()).find(path), std::string::npos);
        }
    OutputFile full("/dev/full");
    EXPECT_THROW(full.write("x"), Failure);
}
